"""A file that computes something else than its module does not get through."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nas.lower.onnx import export
from nas.verify import Disagreement, check_onnx


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
        module[1].bias += bias
    with pytest.raises(Disagreement, match=r"a\.onnx: differs from PyTorch by"):
        check_onnx(tmp_path / "a.onnx", module, in_ch=3, size=8)


def test_a_fixed_batch_is_checked_at_that_batch(tmp_path: Path) -> None:
    module = network()
    export(module, tmp_path / "a.onnx", in_ch=3, size=8, metadata={}, batch=2)
    assert check_onnx(tmp_path / "a.onnx", module, in_ch=3, size=8).relative < 1e-5
