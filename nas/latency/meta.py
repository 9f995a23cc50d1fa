"""Defines what a table or a kernel model says of itself: the conditions of its figures, and how they came about.

In the file it is one flat object, ``meta``. It is checked where the file is read; keys that are not named here are kept
as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from nas.errors import UserError
from nas.latency.load import Load
from nas.record import Record
from nas.space import first_mistake

Whole = Annotated[int, Field(ge=1)]
Ms = Annotated[float, Field(gt=0)]
SAME = ("device", "processor", "runtime", "runtime_version", "precision", "threads", "batch", "clock",
        "system_config", "memory_mode", "accelerator", "vela_ini_sha256")  # figures of one table agree in these


class Conditions(Record):
    """States what figures depend on: the device, and how networks ran on it. None is what is not known, or not there.

    The fields that are only some devices' come after those of all.
    """

    model_config = ConfigDict(extra="allow")

    device: str
    processor: str | None = None
    os: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    precision: str | None = None
    threads: Whole | None = None
    batch: Whole | None = Field(default=None, description="images a call")
    clock: str | None = Field(default=None, description="what the milliseconds are read from")

    cores: Whole | None = None
    governor: str | None = Field(default=None, description="of the clocks of a CPU, as Linux says")
    weight_bits: Annotated[int, Field(ge=2, le=8)] | None = Field(default=None, description="of int8 on a CPU")

    driver: str | None = Field(default=None, description="of a GPU, as all to clocks_locked")
    cuda: str | None = None
    cudnn: int | None = None
    tensorrt: str | None = None
    sm_mhz: int | None = Field(default=None, description="clocks under load")
    mem_mhz: int | None = None
    sm_max_mhz: int | None = None
    mem_max_mhz: int | None = None
    clocks_locked: bool | None = None

    system_config: str | None = Field(default=None, description="what Vela was told of an NPU")
    memory_mode: str | None = None
    core_clock_mhz: Annotated[float, Field(gt=0)] | None = None
    accelerator: str | None = Field(default=None, description="of a board by its file, as all that follow")
    vela_ini: str | None = None
    vela_ini_sha256: str | None = None

    def change_since(self, then: Conditions) -> str | None:
        """Says in what the figures of now cannot join those of then; None where they can."""
        for name in SAME:
            before, now = getattr(then, name), getattr(self, name)
            if before != now:
                return f"{name} was {before!r} and is {now!r}"
        return None


class Correction(Record):
    """Turns measured ms of operators into their share of whole networks: ``scale * ms + per_op_ms``.

    The rest says how it was fitted: on ``n`` networks, with the errors of their sums before and after.
    """

    scale: float
    per_op_ms: float
    of: str | None = Field(default=None, description="the layout that it was taken over from: too few rows were free")
    n: Whole | None = None
    mape_before: float | None = None
    bias_before: float | None = None
    mape_after: float | None = None
    drift: float | None = Field(default=None, description="how much slower than at first the device was meanwhile")

    def ms(self, raw_ms: float) -> float:
        """Returns the corrected ms of a row."""
        return self.scale * raw_ms + self.per_op_ms


class Yardstick(Record):
    """States what one operator, and some networks, took when the rows of a layout were measured."""

    op: str | None = None
    op_ms: list[Ms] | None = None
    network_ms: list[Ms] | None = None


class KnotError(Record):
    """States how far interpolated widths are from ``n`` measured ones, and how far these are from being measured again.
    """

    n: Whole
    mape: float
    noise_mape: float


class Validation(Record):
    """States how far predictions were from ``n`` networks that no fit has seen."""

    n: Whole
    mape: float
    bias: float | None = None
    kendall: float | None = Field(default=None, description="rank correlation; None where it is undefined")
    spearman: float | None = None
    noise_mape: float | None = Field(default=None, description="from measuring the same networks twice, as the next")
    noise_kendall: float | None = None
    space: str | None = None
    size: Whole | None = None
    drift: float | None = None
    date: str | None = None
    measured: str | None = Field(default=None, description="the file of measurements made elsewhere")
    not_measured: int | None = Field(default=None, description="networks that the file lacks")

    def __str__(self) -> str:
        where = f" ({self.space} at {self.size})" if self.space else ""
        noise = "" if self.noise_mape is None else f", noise {self.noise_mape:.1%}"
        return f"{self.mape:.1%} off over {self.n} networks{where}{noise}"


class Errors(Record):
    """States errors of predicted kernels in %."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    mape: float = Field(alias="mape_%")
    median: float | None = Field(default=None, alias="median_%")


class HeldOut(Record):
    """States the errors of a kernel model on rows that it was fitted on, and on groups and sizes that it was not."""

    groups: Errors | None = None
    fitted_rows: Errors | None = None
    sizes: Errors | None = None


class Meta(Conditions):
    """States the conditions of a table's figures and how these came about; what is filled may change it."""

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    method: str | None = None
    protocol: str | None = None
    date: str | None = None
    commit: str | None = Field(default=None, description="of this project, as the figures were made")
    source: str | None = None

    align: Whole = Field(default=1, description="widths are interpolated among those of one gcd with it")
    corrections: dict[str, Correction | None] = Field(default={}, description="by layout; None: it needs none")
    yardsticks: dict[str, Yardstick] = Field(default={}, description="by layout")
    knot_error: KnotError | None = None
    exit_ms: Annotated[float, Field(ge=0)] | None = Field(default=None, description="of asking an exit if it is sure")
    own_operators: dict[str, str] = Field(default={}, description="of the user: the hash of the file that was measured")
    load: Load | None = None
    held_out: HeldOut | None = None
    validation: Validation | None = Field(default=None, description="the last")
    earlier_validations: list[Validation] = Field(default=[], description="oldest first")

    uncorrected: list[str] = Field(default=[], description="layouts whose correction is still to be fitted")
    begun: dict[str, list[list[list[float]]]] = Field(
        default={}, description="networks that were measured, while their number is not complete: [part][2][network]")

    @property
    def busy(self) -> str | None:
        """Says that the figures were made on a busy machine, and its signs; None where there are none."""
        return self.load.busy if self.load else None

    @property
    def checked(self) -> str | None:
        """Says how far off predictions were when they were last compared; None where that is unknown."""
        if self.validation:
            return str(self.validation)
        groups = self.held_out.groups if self.held_out else None
        return f"{groups.mape:.1f}% off over held-out kernels" if groups else None

    def add_validation(self, validation: Validation) -> None:
        """Notes a validation; the last one becomes the newest of the earlier ones."""
        if self.validation:
            self.earlier_validations = [*self.earlier_validations, self.validation]
        self.validation = validation

    @model_serializer(mode="wrap")
    def _what_is_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields  # further keys stay as they are
        return {key: value for key, value in write(self).items() if key not in fields or value != fields[key].default}


def checked_meta(value: Any, path: Path) -> Meta:
    """Returns the meta of a file. Raises UserError, one line with file and key, for what is wrong with it."""
    try:
        return Meta.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{path}: meta: {first_mistake(error)}; correct it, or make the file anew") from None
