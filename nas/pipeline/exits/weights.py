"""Builds torchvision's classifiers as torchvision does, with weights from a file, however these were saved.

Training scripts put weights under a key of their own (``state_dict``, ``model``, ...) and wrappers put a prefix before
every name (``module.``, ``_orig_mod.``, ...). Neither is looked for by name: what counts is where the names of the
network's own tensors are found.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

from nas.errors import UserError, setting
from nas.files import nearest
from nas.lower import formats
from nas.plan import check_side

TRAINING_ONLY = ("aux1", "aux2", "AuxLogits")  # heads that are not run in eval mode
COUNTER = "num_batches_tracked"  # of batch norms; older files have none
AVERAGES = ("ema", "averaged", "swa", "teacher")  # in a key: a second copy of the network
DEPTH = 4  # of keys
State = dict[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """Holds a network of torchvision in eval mode, the side of the images that it is evaluated at, and ``weights``.

    These say under which key its weights were found in their file.
    """

    net: nn.Module
    size: int
    weights: str | None = None


def classifier_names() -> list[str]:
    """Lists the names of torchvision's classifiers."""
    return list(models.list_models(module=models))


def build_classifier(name: str, weights: Path | None, untrained: bool = False) -> Classifier:
    """Builds a classifier of torchvision with weights from a file; ``untrained`` allows random ones without a file.

    Raises UserError for an unknown name and for weights that are missing or of another network.
    """
    if name not in classifier_names():
        raise UserError(f"{name}: neither a run, nor an ONNX file, nor a model of torchvision; "
                        f"{nearest(name, classifier_names())}")
    if weights is None and not untrained:
        raise UserError(f"{name}: give its trained weights: {setting('weights', 'FILE')} (.pth or .safetensors)")
    net = _build(name)
    if weights is None:
        return Classifier(net, _image_size(name, net))
    trained = _find_state(read_weights(weights), net, weights, name)
    if (arguments := _builder_arguments(trained.state, net)) != _builder_arguments(net.state_dict(), net):
        net = _build(name, **arguments)
    _load_into(trained.state, net, weights, name)
    return Classifier(net, _image_size(name, net), trained.place)


def check_size(name: str, made: Classifier, size: int) -> None:
    """Raises UserError for images that are too small for a network, or that it does not take."""
    check_side(size)
    try:
        with torch.inference_mode():
            made.net(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{setting('size', size)}: {name} does not run on such images "
                        f"({' '.join(str(error).split())[:120]}); torchvision evaluates it at {setting('size')} "
                        f"{made.size}") from None


def read_weights(path: Path) -> Any:
    """Reads what torch or safetensors saved. Raises UserError, which says what the file is, for anything else."""
    if not path.exists():
        raise UserError(f"{setting('weights', path)}: no such file; torchvision's own are not downloaded")
    kind = formats.format_of(path)
    if kind not in (formats.SAFETENSORS, formats.TORCH):
        raise UserError(f"{setting('weights', path)}: {kind.text}, not "
                        f"weights{kind.for_weights and '; '}{kind.for_weights}")
    try:
        return safetensors.torch.load_file(path) if kind is formats.SAFETENSORS else _unpickle(path)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a broken file
        raise UserError(f"{setting('weights', path)}: {kind.text} that cannot be read, broken or cut off "
                        f"({' '.join(str(error).split())[:120]}); fetch it again") from None


def _unpickle(path: Path) -> Any:
    """Reads a file of torch that holds tensors and plain values; nothing in it is executed.

    Settings of the training (``argparse.Namespace``) and numbers of NumPy, which checkpoints have beside weights, are
    harmless. Raises UserError for other classes.
    """
    allowed = _harmless_classes()
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a format of before torch 1.6, which loading itself checks
        strange = []
    strange = sorted(set(strange) - {name for _, name in allowed})
    if any(name.startswith("torch.nn.modules") for name in strange):
        raise UserError(f"{setting('weights', path)}: a whole module was pickled, which is not read because it could "
                        "execute anything; where it was made: torch.save(model.state_dict(), 'weights.pth')")
    if strange:
        raise UserError(f"{setting('weights', path)}: holds {', '.join(strange[:3])} beside weights, which is not "
                        "read because it could execute anything; where it was made: torch.save(model.state_dict(), "
                        "'weights.pth')")
    with torch.serialization.safe_globals(list(allowed)), path.open("rb") as file:  # of a path it believes the name
        return torch.load(file, map_location="cpu", weights_only=True)


def _harmless_classes() -> list[tuple[Any, str]]:
    """Lists classes and functions that make values and do nothing else, with the names that files have for them."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)}
    return [(argparse.Namespace, "argparse.Namespace"), (np.dtype, "numpy.dtype"),
            *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
            *((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)]


def _build(name: str, **arguments: Any) -> nn.Module:
    """Builds a network as torchvision does for weights of its own, without the heads that are for training alone.

    GoogLeNet and Inception then expect inputs that are normalised as for ImageNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs takes a minute
        net: nn.Module = models.get_model(name, weights=None, **quick, **arguments)
    if hasattr(net, "transform_input"):
        net.transform_input = True  # type: ignore[assignment]
    for auxiliary in TRAINING_ONLY:
        if hasattr(net, auxiliary):
            setattr(net, auxiliary, None)
            net.aux_logits = False  # type: ignore[assignment]
    return net.eval()


def _image_size(name: str, net: nn.Module) -> int:
    """Returns the side of the images that torchvision evaluates its weights at; a transformer has its own."""
    side = getattr(net, "image_size", None)
    presets = models.get_model_weights(name).DEFAULT.transforms
    return int(side if side is not None else presets.keywords["crop_size"])


def _builder_arguments(state: State, net: nn.Module) -> dict[str, int]:
    """Returns the builder's arguments that follow from shapes of weights: classes, and a transformer's image size."""
    arguments = {"num_classes": len(state[_head_name(net)])}
    if (places := state.get("encoder.pos_embedding")) is not None and isinstance(net, models.VisionTransformer):
        arguments["image_size"] = math.isqrt(places.shape[1] - 1) * net.patch_size
    return arguments


def _head_name(net: nn.Module) -> str:
    """Returns the name of the classifier's last tensor, which has a number for each class."""
    return list(net.state_dict())[-1]


@dataclass(frozen=True)
class _StateDict:
    """Holds tensors by the network's names, and the key and prefix under which the file has them."""

    state: State
    place: str


def _find_state(content: Any, net: nn.Module, path: Path, name: str) -> _StateDict:
    """Finds the network's tensors in what a file holds, by their names.

    Raises UserError where no tensors have these names, and where those of several networks do.
    """
    expected = set(net.state_dict())
    groups = list(_tensor_groups(content))
    if not groups:
        raise UserError(f"{setting('weights', path)}: no state dict, it holds no tensors by name; where it was made: "
                        "torch.save(model.state_dict(), 'weights.pth')")
    candidates = [_StateDict(state, place) for place, tensors in groups
                  for place, state in _without_prefix(place, tensors, net)]
    most = max((len(expected & c.state.keys()) for c in candidates), default=0)
    best = [c for c in candidates if len(expected & c.state.keys()) == most]
    best = [c for c in best if not any(word in c.place.lower() for word in AVERAGES)] or best
    if not best or _head_name(net) not in best[0].state:
        tensors = max((tensors for _, tensors in groups), key=len)
        raise UserError(f"{setting('weights', path)}: not weights of {name}: no {_head_name(net)} among {len(tensors)} "
                        f"tensors ({_first(sorted(tensors))})")
    if len(best) > 1:
        places = ", ".join(candidate.place or "at the top" for candidate in best)
        raise UserError(f"{setting('weights', path)}: holds {len(best)} such networks ({places}); save one of them "
                        "alone")
    return best[0]


def _tensor_groups(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yields every mapping of names to tensors in what a file holds, with the keys that lead to it."""
    if isinstance(content, Mapping) and depth < DEPTH:
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            yield place, tensors
        for key, value in content.items():
            yield from _tensor_groups(value, f"{place}{key}/", depth + 1)


def _without_prefix(place: str, tensors: State, net: nn.Module) -> Iterator[tuple[str, State]]:
    """Yields tensors without a prefix of their names, for each prefix that some name of the network's has."""
    ends = (_head_name(net), next(iter(net.state_dict())))
    prefixes = {key.removesuffix(end) for key in tensors for end in ends if key.endswith(end)}
    expected = net.state_dict().keys()
    for prefix in sorted(prefixes):
        if prefix == "" or prefix.endswith("."):
            state = {_current_name(key[len(prefix):], expected): value for key, value in tensors.items()
                     if key.startswith(prefix)}
            yield place + prefix, {key: value for key, value in state.items()
                                   if key.partition(".")[0] not in TRAINING_ONLY}


def _current_name(key: str, expected: Any) -> str:
    """Translates the name of a tensor in old files of torchvision to today's, if that is one of ``expected``.

    Files of DenseNet have ``norm.1`` for ``norm1``, those of transformers ``linear_2`` for ``3``.
    """
    other = re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key)
    other = re.sub(r"\.linear_([12])\.", lambda match: f".{3 * int(match[1]) - 3}.", other)
    return other if key not in expected and other in expected else key


def _load_into(state: State, net: nn.Module, path: Path, name: str) -> None:
    """Loads weights into a network. Raises UserError, naming what does not fit, for other weights and for NaN."""
    expected = net.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith(COUNTER)]
    strange = [key for key in state if key not in expected]
    shapes = [f"{key} is {list(state[key].shape)}, not {list(value.shape)}" for key, value in expected.items()
              if key in state and state[key].shape != value.shape]
    reasons = [f"{len(keys)} of {of} {what} ({_first(keys)})" for keys, of, what in (
        (missing, len(expected), "tensors are missing"), (strange, len(state), "are of no layer of it"),
        (shapes, len(expected), "have other shapes")) if keys]
    if reasons:
        raise UserError(f"{setting('weights', path)}: not weights of {name}: {'; '.join(reasons)}")
    if broken := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise UserError(f"{setting('weights', path)}: {len(broken)} tensors hold values that are no numbers "
                        f"({_first(broken)})")
    ordered = OrderedDict(state)
    ordered._metadata = {"": {"version": getattr(net, "_version", None)}}  # type: ignore[attr-defined]  # MNASNet asks
    net.load_state_dict(ordered)


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
