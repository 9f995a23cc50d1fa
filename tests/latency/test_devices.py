"""What holds for every device: a new one is held to it as soon as it is among the kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from nas.errors import UserError
from nas.latency.bench import Estimator
from nas.latency.devices import kinds, local_device, local_targets, open_device
from nas.latency.timing import Device
from nas.lower.onnx import lower

NAMES = [name for kind in kinds() for name in kind.names]


def here(name: str) -> Device | Estimator:
    try:
        return open_device(name)
    except UserError as error:
        assert "\n" not in str(error) and name in str(error)
        pytest.skip(str(error))


def test_each_name_is_one_device_and_each_target_of_this_machine_names_one() -> None:
    assert len(set(NAMES)) == len(NAMES) and "cpu" in NAMES
    targets = local_targets()
    assert targets["cpu"] == ("cpu", "fp32") and {device for device, _ in targets.values()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_says_what_its_figures_depend_on(name: str) -> None:
    conditions = here(name).conditions()
    assert (conditions.device, conditions.threads, conditions.batch) == (name, 1, 1)
    assert conditions.processor and conditions.runtime and conditions.runtime_version
    assert conditions.precision and conditions.clock


@pytest.mark.parametrize("name", NAMES)
def test_what_is_timed_takes_time_and_is_known_again(name: str, tmp_path: Path) -> None:
    device = here(name)
    if isinstance(device, Estimator):
        assert local_device(device.conditions()) is None, "nothing runs there"
        return
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    assert device.prepare(module, in_ch=3, size=8)() > 0
    again = local_device(device.conditions())
    assert again is not None and again.name == name
    if device.reads_onnx:
        (tmp_path / "net.onnx").write_bytes(lower(module, in_ch=3, size=8).SerializeToString())
        assert device.load(tmp_path / "net.onnx")() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_it_cannot_do_is_one_line(name: str) -> None:
    here(name)
    with pytest.raises(UserError, match="precision") as caught:
        open_device(name, precision="fp3")
    assert "\n" not in str(caught.value)


def test_a_name_that_nobody_has_is_refused_with_one_that_is() -> None:
    with pytest.raises(UserError, match="ethos-u55-128"):
        open_device("ethos-u55-12")
