"""A file that computes something else than its module does not get through."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.lower.onnx import export
from nas.lower.verify import Disagreement, check_onnx, compare_int8, require_int8_agreement


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()


def test_agreement_is_small_and_the_module_keeps_its_mode(tmp_path: Path) -> None:
    module = network()
    export(module, tmp_path / "a.onnx", in_ch=3, size=8, metadata={})
    agreement = check_onnx(tmp_path / "a.onnx", module, in_ch=3, size=8)
    assert 0 <= agreement.max_abs_diff < 1e-5 and agreement.relative < 1e-5 and module.training


@pytest.mark.parametrize("bias", [0.01, float("nan")])
def test_other_weights_are_found(tmp_path: Path, bias: float) -> None:
    module = network()
    export(module, tmp_path / "a.onnx", in_ch=3, size=8, metadata={})
    with torch.no_grad():
        module.get_parameter("1.bias").add_(bias)
    with pytest.raises(Disagreement, match=r"a\.onnx: differs from PyTorch by"):
        check_onnx(tmp_path / "a.onnx", module, in_ch=3, size=8)


class Off(nn.Module):
    """A network whose largest output is 1, and what is added to all of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (3 * x).clamp(-1, 1) + self.beside


@pytest.mark.parametrize(("off", "refused"), [(0.95e-4, False), (1.05e-4, True), (-1.05e-4, True)])
def test_the_tolerance_is_a_ten_thousandth_of_the_largest_output(tmp_path: Path, off: float, refused: bool) -> None:
    module = Off()
    export(module, tmp_path / "a.onnx", in_ch=1, size=8, metadata={}, batch=1)
    with torch.no_grad():
        module.beside += off
    if refused:
        with pytest.raises(Disagreement, match=r"by 1\.\de-04 of the largest output \(allowed: 1e-04\)"):
            check_onnx(tmp_path / "a.onnx", module, in_ch=1, size=8)
    else:
        assert check_onnx(tmp_path / "a.onnx", module, in_ch=1, size=8).relative == pytest.approx(off, rel=0.02)


@pytest.mark.parametrize(("noise", "survives"), [(0.3, True), (0.33, False)])
def test_int8_survives_where_a_tenth_of_the_energy_is_noise(noise: float, survives: bool) -> None:
    """Signal 1, noise of 0.3 in every output: 10.5 dB; of 0.33 9.6 dB. The top class is another where signs differ."""
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    found = compare_int8(lambda images: images + noise * torch.ones(2, 2), nn.Identity(), x)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(noise)) and found.same_top1 == 1
    assert compare_int8(lambda images: -images, nn.Identity(), x).same_top1 == 0
    if survives:
        assert require_int8_agreement("file", found) is found
    else:
        with pytest.raises(Disagreement, match=r"file: 9\.6 dB"):
            require_int8_agreement("file", found)


def test_a_fixed_batch_is_checked_at_that_batch(tmp_path: Path) -> None:
    module = network()
    export(module, tmp_path / "a.onnx", in_ch=3, size=8, metadata={}, batch=2)
    assert check_onnx(tmp_path / "a.onnx", module, in_ch=3, size=8).relative < 1e-5
