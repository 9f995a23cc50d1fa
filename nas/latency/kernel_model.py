"""Computes latency from a model of single kernels: a module takes the sum over the kernels that ``trace`` finds in it.

A convolution costs a roofline (MACs, bytes, one launch) times the exponential of a learned residual, the mean of a few
small networks in log space. Shapes outside the fitted rows keep the residual of the nearest one inside and scale with
the roofline. Grouped convolutions have no rows: they are priced between dense and depthwise, geometrically in the
logarithm of the number of groups. Other kernels are bound by memory: bytes at the device's bandwidth, and one launch.
The correction from single kernels to whole networks first lets no kernel cost more than itself padded; it is then
affine in (sum, number of kernels) and folded into each kernel, so that sums are exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from torch import nn

from nas import ops
from nas.errors import UserError
from nas.files import nearest, write_text
from nas.latency.base import Costs
from nas.latency.fusion import Kernel
from nas.latency.meta import Meta, Whole
from nas.latency.trace import kernels
from nas.plan import OpKey
from nas.record import Record
from nas.space import first_mistake

Array = NDArray[np.float64]

IN_CH, OUT_CH, SIZE, SIZE_OUT, STRIDE, DEPTHWISE = 0, 1, 2, 3, 5, 7  # columns of a convolution
WINDOWS = (1.0, 3.0, 5.0, 7.0)  # kernel sides of the rows; between them the features blend
TILES = ((256, 128), (128, 128), (256, 64), (64, 64))  # positions x channels that a block of a GPU's threads computes
CHUNKS = (16, 32, 64, 128)  # channels that hardware computes at once: others are padded to multiples
PRICED_AT_ONCE = 256  # convolutions, each with all its paddings: bounds the memory
BLOCK = 64  # operators that go through the residual's networks at a time
FEATURES = (
    "depthwise", "log in_ch", "log out_ch", "log size", "stride 2", "add", "depthwise stride 2", "1x1 stride 2",
    "1x1 add", "log macs", "log bytes", "log map out", "log map in", "log weights", "in_ch of 8s", "log roofline",
    *(f"dense {k:.0f}x{k:.0f}" for k in WINDOWS), *(f"depthwise {k:.0f}x{k:.0f}" for k in WINDOWS),
    *(f"{side} filling {n}s" for n in CHUNKS for side in ("out_ch", "in_ch")),
    *(f"{what} of {rows}x{columns}" for rows, columns in TILES for what in ("tiles", "last wave")))


class ModelMeta(Meta):
    """States device and conditions of the figures, and where they are from."""

    runtime: str
    precision: str
    batch: Whole
    method: str
    source: str
    date: str


class Roofline(Record):
    """States what the hardware computes and moves in a ms, and what a launch takes."""

    macs_per_ms: float = Field(gt=0)
    bytes_per_ms: float = Field(gt=0)
    launch_ms: float = Field(gt=0)
    processors: int = Field(gt=0)  # each computes a tile: an NVIDIA GPU's streaming multiprocessors


class Limits(Record):
    """States the smallest and largest value in the fitted rows."""

    in_ch: tuple[float, float]
    out_ch: tuple[float, float]
    size: tuple[float, float]
    residual: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        for name, (low, high) in self:
            if low > high or (name != "residual" and low <= 0):
                raise ValueError(f"{name}: [{low}, {high}] is not a range")
        return self


class Layer(Record):
    """Holds a layer's weight [outputs][inputs] and bias [outputs]; SiLU follows all layers but the last."""

    weight: list[list[float]]
    bias: list[float]


class Correction(Record):
    """Turns ms of kernels into ms of a network: scale * sum of least ms + per_kernel_ms * kernels.

    No kernel is below ``floor_ms``.
    Least ms is that of the cheapest among the kernel and itself padded to one of these sides, or with its channels
    padded to one of these numbers or to a multiple.
    """

    padded_sides: list[Annotated[int, Field(gt=0)]] = []
    padded_channels: list[Annotated[int, Field(gt=0)]] = []
    padded_multiples: list[Annotated[int, Field(gt=0)]] = []
    scale: float = Field(gt=0)
    per_kernel_ms: float
    floor_ms: float = Field(gt=0)


class Variant(Record):
    """Holds the fitted model for one precision and batch size."""

    element_bytes: int = Field(gt=0)
    batch: int = Field(default=1, gt=0)  # images a launch; maps and MACs grow with it, weights do not
    roofline: Roofline
    floor_ms: float = Field(gt=0)
    limits: Limits
    features: list[str]
    mean: list[float]
    scale: list[float]
    networks: list[list[Layer]] = Field(min_length=1)
    correction: Correction

    @model_validator(mode="after")
    def _fits(self) -> Variant:
        n = len(FEATURES)
        if tuple(self.features) != FEATURES or len(self.mean) != n or len(self.scale) != n:
            raise ValueError(f"features, mean and scale must be these {n}: {', '.join(FEATURES)}")
        if min(self.scale) <= 0:
            raise ValueError("scale must be positive")
        for network in self.networks:
            width = n
            for layer in network:
                if len(layer.bias) != len(layer.weight) or any(len(row) != width for row in layer.weight):
                    raise ValueError(f"networks: a layer's weight is not {len(layer.bias)} x {width}")
                width = len(layer.bias)
            if width != 1:
                raise ValueError("networks: the last layer must have one output")
        return self


class ModelFile(Record):
    """Holds a kernel model's file: one device at several precisions and batches."""

    kind: Literal["kernel-model"] = "kernel-model"
    name: str
    meta: ModelMeta
    variants: dict[str, Variant] = Field(description="by names such as fp16-batch1; the meta names the usual one")

    @classmethod
    def load(cls, path: Path) -> ModelFile:
        """Reads the file. Raises UserError, one line with file and key, for whatever is wrong with it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise UserError(f"{path}: {first_mistake(error)}; restore the file or rebuild it") from None

    def save(self, path: Path) -> None:
        """Writes the file atomically: sorted keys, a layer's weights one row a line."""
        text = json.dumps(self.to_json(), sort_keys=True, allow_nan=False, separators=(",", ":"))
        split = re.sub(r'"(?:[^"\\]|\\.)*"|,(?=["\[])', lambda match: match[0] + "\n" * (match[0] == ","), text)
        write_text(path, f"{split}\n")


class Shapes:
    """Holds shapes of n convolutions, an array [n] for each figure, and computes work and features from them.

    They are dense or depthwise, nothing between.
    """

    def __init__(self, depthwise: Array, in_ch: Array, out_ch: Array, size: Array, size_out: Array, window: Array,
                 stride: Array, add: Array, element_bytes: int, batch: int = 1) -> None:
        self.depthwise, self.in_ch, self.out_ch, self.size, self.window = depthwise, in_ch, out_ch, size, window
        self.stride, self.add = stride, add
        per_output = np.where(depthwise > 0, 1.0, in_ch) * window**2
        self.map_in, self.map_out = batch * size**2 * in_ch, batch * size_out**2 * out_ch
        self.weights = per_output * out_ch
        self.macs = per_output * self.map_out
        self.bytes = element_bytes * (self.map_in + self.map_out * (1 + add) + self.weights)

    def roofline_ms(self, roofline: Roofline) -> Array:
        return np.asarray(self.macs / roofline.macs_per_ms + self.bytes / roofline.bytes_per_ms + roofline.launch_ms)

    def features(self, roofline: Roofline) -> Array:
        """Returns the inputs of the residual's networks, [n, len(FEATURES)]."""
        dense, point = 1 - self.depthwise, _hats(self.window)[0]
        strided = (self.stride > 1).astype(float)
        logs = np.log([self.macs, self.bytes, self.map_out, self.map_in, self.weights])
        return np.stack([
            self.depthwise, *np.log([self.in_ch, self.out_ch, self.size]), strided, self.add, self.depthwise * strided,
            point * strided, point * self.add, *logs, (self.in_ch % 8 == 0).astype(float),
            np.log(self.roofline_ms(roofline)), *(h * dense for h in _hats(self.window)),
            *(h * self.depthwise for h in _hats(self.window)), *(v * dense for v in self._filling(roofline))], 1)

    def _filling(self, roofline: Roofline) -> Iterator[Array]:
        """Yields features [n] that tell how well convolutions fill the hardware.

        They are logs of padded over actual channels, of the tiles, and of tiles rounded up to a whole wave over tiles.
        A dense convolution is computed as a matrix product, tile by tile, and a tile that is not full takes as long
        (NVIDIA, Matrix Multiplication Background User's Guide: tile and wave quantization).
        """
        for chunk in CHUNKS:
            for channels in (self.out_ch, self.in_ch):
                yield np.log(np.ceil(channels / chunk) * chunk / channels)
        for rows, columns in TILES:
            tiles = np.ceil(self.map_out / self.out_ch / rows) * np.ceil(self.out_ch / columns)
            yield np.log(tiles)
            yield np.log(np.ceil(tiles / roofline.processors) * roofline.processors / tiles)


def _hats(window: Array) -> list[Array]:
    """Returns weights [n] for each side in ``WINDOWS``: windows between two of these are interpolated linearly."""
    return [np.interp(window, WINDOWS, [float(k == knot) for k in WINDOWS]) for knot in WINDOWS]


class KernelModel(Costs):
    """Computes costs of operators from their kernels, for the device, precision and batch that ``meta`` states."""

    kind = "kernel-model"

    meta: ModelMeta

    def __init__(self, file: ModelFile, variant: Variant) -> None:
        """Takes one of the file's variants, or one that is still to join them."""
        self.file, self.name, self.meta, self.variant = file, file.name, file.meta, variant
        self._layers = [[(np.array(layer.weight).T, np.array(layer.bias)) for layer in network]
                        for network in variant.networks]
        self._of_kernel: dict[Kernel, float] = {}
        self._of_key: dict[OpKey, float] = {}

    @classmethod
    def load(cls, path: Path, variant: str | None = None) -> KernelModel:
        """Reads a kernel model; ``variant`` such as ``fp16-batch1``, None for the one that the file's meta names.

        Raises UserError, one line with file and key, for whatever is wrong with the file.
        """
        file = ModelFile.load(path)
        name = variant or f"{file.meta.precision}-batch{file.meta.batch}"
        if name not in file.variants:
            raise UserError(f"{path}: variants: no {name!r}; {nearest(name, file.variants)}")
        return cls(file, file.variants[name])

    def save(self, path: Path) -> None:
        """Writes the file with all its variants."""
        self.file.save(path)

    def raw_ms(self, kernels: Sequence[Kernel]) -> Array:
        """Returns [n] ms of kernels that are launched alone, as in the rows that were fitted."""
        return self._with_floor(kernels, self._conv_ms)

    def kernel_ms(self, kernels: Sequence[Kernel]) -> Array:
        """Returns [n] ms that each kernel adds to a network; always positive."""
        new = [k for k in dict.fromkeys(kernels) if k not in self._of_kernel]
        if new:
            fit = self.variant.correction
            corrected = np.maximum(fit.scale * self._with_floor(new, self._least_ms) + fit.per_kernel_ms, fit.floor_ms)
            self._of_kernel.update(zip(new, corrected.tolist(), strict=True))
        return np.array([self._of_kernel[k] for k in kernels], dtype=np.float64)

    def module_ms(self, module: nn.Module, in_ch: int, size: int) -> float:
        """Returns ms of a call with the variant's batch. Raises UserError for an operator without a known kernel."""
        return float(self.kernel_ms(kernels(module, in_ch, size)).sum())

    def covers(self, key: OpKey) -> bool:
        """Returns whether every kernel of an operator is known."""
        try:
            _traced(key)
        except UserError:
            return False
        return True

    def ms(self, key: OpKey) -> float:
        """Returns ms of an operator at a shape. Raises UserError where no kernel is known for it."""
        return self.ms_many([key])[0]

    def ms_many(self, keys: Iterable[OpKey]) -> list[float]:
        """Returns ms of each operator; the kernels of all new ones are computed in one call."""
        keys = list(keys)
        traced = {key: _traced(key) for key in dict.fromkeys(keys) if key not in self._of_key}
        self.kernel_ms([k for launches in traced.values() for k in launches])
        for key, launches in traced.items():
            self._of_key[key] = float(self.kernel_ms(launches).sum())
        return [self._of_key[key] for key in keys]

    def _with_floor(self, kernels: Sequence[Kernel], conv_ms: Callable[[Array], Array]) -> Array:
        result, v = np.empty(len(kernels)), self.variant
        conv = np.array([k.kind == "conv" for k in kernels], bool)
        moved = np.array([k.moved for k in kernels if k.kind != "conv"], float)
        result[~conv] = v.batch * moved * v.element_bytes / v.roofline.bytes_per_ms + v.floor_ms
        if conv.any():
            result[conv] = conv_ms(_columns([k for k in kernels if k.kind == "conv"]))
        return np.maximum(result, v.floor_ms)

    def _least_ms(self, columns: Array) -> Array:
        """Returns the least ms of each convolution and itself on padded maps or channels: less work never costs more.

        In the rows some small maps take up to three times as long as larger ones, which an engine need not put up with.
        """
        return np.concatenate([self._least_of(part) for part in
                               np.split(columns, range(PRICED_AT_ONCE, len(columns), PRICED_AT_ONCE))])

    def _least_of(self, columns: Array) -> Array:
        best = self._conv_ms(columns)
        changed = [(rows, larger[rows]) for larger in self._padded(columns)
                   if len(rows := np.flatnonzero((larger > columns).any(1)))]
        if changed:  # in one call: many small ones take longer by far
            np.minimum.at(best, np.concatenate([rows for rows, _ in changed]),
                          self._conv_ms(np.concatenate([padded for _, padded in changed])))
        return best

    def _padded(self, columns: Array) -> Iterator[Array]:
        fit = self.variant.correction
        for side in fit.padded_sides:
            larger = columns.copy()
            larger[:, SIZE] = np.maximum(larger[:, SIZE], side)
            larger[:, SIZE_OUT] = np.maximum(larger[:, SIZE_OUT], np.ceil(larger[:, SIZE] / larger[:, STRIDE]))
            yield larger
        for axes in ([IN_CH], [OUT_CH], [IN_CH, OUT_CH]):
            for padded in (*(np.maximum(columns[:, axes], c) for c in fit.padded_channels),
                           *(np.ceil(columns[:, axes] / m) * m for m in fit.padded_multiples)):
                larger = columns.copy()
                larger[:, axes] = padded
                yield larger

    def _conv_ms(self, columns: Array) -> Array:
        """Returns ms of convolutions, [n, 8] -> [n]: dense and depthwise as fitted, grouped ones between the two."""
        share, log_ms = columns[:, DEPTHWISE], np.zeros(len(columns))
        for depthwise, part in ((0.0, 1 - share), (1.0, share)):
            live = part > 0
            if live.any():
                log_ms[live] += part[live] * self._log_ms(columns[live], depthwise)
        return np.asarray(np.exp(log_ms))

    def _log_ms(self, columns: Array, depthwise: float) -> Array:
        in_ch, out_ch, size, size_out, window, stride, add, _ = columns.T
        if depthwise:
            in_ch = out_ch = np.maximum(in_ch, out_ch)
            add = np.zeros_like(add)
        kind, v = np.full(len(columns), depthwise), self.variant
        actual = Shapes(kind, in_ch, out_ch, size, size_out, window, stride, add, v.element_bytes, v.batch)
        inside = self._nearest(kind, in_ch, out_ch, size, window, stride, add)
        return np.asarray(np.log(actual.roofline_ms(v.roofline)) + self._residual(inside.features(v.roofline)))

    def _nearest(self, kind: Array, in_ch: Array, out_ch: Array, size: Array, window: Array, stride: Array,
                 add: Array) -> Shapes:
        """Returns the nearest shapes within the limits of the rows."""
        limits = self.variant.limits
        size, stride = np.clip(size, *limits.size), np.clip(stride, 1, 2)
        out_ch = np.clip(out_ch, *limits.out_ch)
        in_ch = np.where(kind > 0, out_ch, np.clip(in_ch, *limits.in_ch))
        return Shapes(kind, in_ch, out_ch, size, np.ceil(size / stride), np.clip(window, WINDOWS[0], WINDOWS[-1]),
                      stride, add, self.variant.element_bytes, self.variant.batch)

    def _residual(self, features: Array) -> Array:
        v = self.variant
        x = (features - v.mean) / v.scale
        return np.clip(np.mean([_forward(layers, x) for layers in self._layers], 0), *v.limits.residual)


def _columns(convs: Sequence[Kernel]) -> Array:
    """Returns the shapes of convolutions, [n, 8]; the last column is log groups / log in_ch: 0 dense, 1 depthwise."""
    columns = np.array([(k.in_ch, k.out_ch, k.size_in, k.size_out, k.kernel, k.stride, k.fused_add, k.groups)
                        for k in convs], float)
    columns[:, DEPTHWISE] = np.log(columns[:, DEPTHWISE]) / np.log(np.maximum(columns[:, IN_CH], 2))
    return columns


def _forward(layers: Sequence[tuple[Array, Array]], x: Array) -> Array:
    """Runs a small network, [n, inputs] -> [n], in blocks of equally many rows.

    A BLAS may sum in another order for other shapes, and an operator's cost must not depend on what is asked with it.
    """
    n = len(x)
    x = np.pad(x, ((0, -n % BLOCK), (0, 0))).reshape(-1, BLOCK, x.shape[1])
    for weight, bias in layers[:-1]:
        x = x @ weight + bias
        x = x / (1 + np.exp(-np.clip(x, -60, 60)))
    weight, bias = layers[-1]
    return np.asarray((x @ weight + bias).reshape(-1)[:n])


def _traced(key: OpKey) -> tuple[Kernel, ...]:
    return _launched(cast(Hashable, ops.family(key.op.name)), key)


@lru_cache(maxsize=1 << 16)
def _launched(family: Hashable, key: OpKey) -> tuple[Kernel, ...]:
    """Lists the kernels of an operator, once for all models; ``family`` is its class, as files of users come and go."""
    with torch.device("meta"):
        module = ops.build(key.op, key.in_ch, key.out_ch, key.stride)
    return tuple(kernels(module, key.in_ch, key.size))
