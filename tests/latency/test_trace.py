"""Kernel lists of small blocks, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every import every
from torch import Tensor, nn

from nas.errors import UserError
from nas.latency.fusion import Kernel
from nas.latency.trace import kernels


def conv_bn(in_ch: int, out_ch: int, kernel: int = 1, stride: int = 1, groups: int = 1, *,
            act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(in_ch, out_ch, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out_ch)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Lambda(nn.Module):
    def __init__(self, call: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_conv_bn_act_is_one_kernel_wherever_the_weights_are(device: str) -> None:
    with torch.device(device):
        module = conv_bn(8, 16, 3, 2)
    assert kernels(module, 8, 15) == [Kernel("conv", 8, 16, 15, 8, 3.0, 2)]
    assert every(part.training for part in module.modules())


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(inplace=True), nn.ReLU6()])
def test_activations_join_the_convolution(act: nn.Module) -> None:
    assert len(kernels(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), act), 8, 4)) == 1


def test_depthwise_by_weight_rows() -> None:
    weight = torch.empty(24, 1, 5, 5, device="meta")
    module = Lambda(lambda _, x: F.conv2d(x, weight[:16], None, 1, 2, 1, 16))
    assert kernels(module, 16, 7) == [Kernel("conv", 16, 16, 7, 7, 5.0, 1, 16)]


def test_residual_add_joins_the_last_convolution() -> None:
    block = Residual(nn.Sequential(conv_bn(8, 32), conv_bn(32, 32, 3, groups=32), conv_bn(32, 8, act=False)))
    assert kernels(block, 8, 14) == [Kernel("conv", 8, 32, 14, 14), Kernel("conv", 32, 32, 14, 14, 3.0, 1, 32),
                                     Kernel("conv", 32, 8, 14, 14, fused_add=True)]


def test_of_two_convolutions_the_later_takes_the_add() -> None:
    found = kernels(Residual(conv_bn(8, 16, 3, act=False), conv_bn(8, 16, act=False)), 8, 14)
    assert [(k.kernel, k.fused_add) for k in found] == [(3.0, False), (1.0, True)]


def test_add_behind_an_activation_is_a_kernel_of_its_own_and_takes_the_relu() -> None:
    found = kernels(Residual(conv_bn(8, 8, 3)), 8, 10)
    assert found[1:] == [Kernel("pointwise", 8, 8, 10, 10, moved=3 * 800)]


def test_add_does_not_join_a_map_that_is_read_twice() -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        return y + m.b(y)

    found = kernels(Lambda(call, a=conv_bn(8, 8, act=False), b=nn.MaxPool2d(3, 1, 1)), 8, 10)
    assert [k.kind for k in found] == ["conv", "pool", "pointwise"]


def test_squeeze_excite_is_pool_two_convolutions_and_a_product() -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True)))))

    found = kernels(Lambda(call, down=nn.Conv2d(32, 8, 1), up=nn.Conv2d(8, 32, 1)), 32, 14)
    assert found == [Kernel("pool", 32, 32, 14, 1, moved=32 * 196 + 32), Kernel("conv", 32, 8, 1, 1),
                     Kernel("conv", 8, 32, 1, 1), Kernel("pointwise", 32, 32, 14, 14, moved=2 * 32 * 196 + 32)]


def test_ghost_module_cat_and_slice() -> None:
    def call(m: nn.Module, x: Tensor, out_ch: int) -> Tensor:
        primary = m.a(x)
        return torch.cat([primary, m.b(primary)], 1)[:, :out_ch]

    parts = {"a": conv_bn(8, 16), "b": conv_bn(16, 16, 3, groups=16)}
    whole = kernels(Lambda(lambda m, x: call(m, x, 32), **parts), 8, 6)
    assert [k.kind for k in whole] == ["conv", "conv", "cat"]
    assert whole[2] == Kernel("cat", 16, 32, 6, 6, moved=2 * 32 * 36)
    cut = kernels(Lambda(lambda m, x: call(m, x, 24), **parts), 8, 6)
    assert cut[3] == Kernel("copy", 32, 24, 6, 6, moved=2 * 24 * 36)


def test_head_linear_is_a_1x1_convolution_and_views_are_free() -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 10), nn.ReLU())
    assert kernels(head, 8, 7) == [Kernel("pool", 8, 8, 7, 1, moved=8 * 49 + 8), Kernel("conv", 8, 10, 1, 1)]


def test_channel_shuffle_copies_once() -> None:
    shuffle = Lambda(lambda _, x: x.view(1, 2, 4, 6, 6).transpose(1, 2).reshape(1, 8, 6, 6))
    assert [(k.kind, k.moved) for k in kernels(shuffle, 8, 6)] == [("copy", 2 * 8 * 36)]


def test_pools_and_resizes_are_memory_bound() -> None:
    found = kernels(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), 4, 8)
    assert [(k.kind, k.moved) for k in found] == [("pool", 4 * 80), ("pool", 4 * 20), ("resize", 4 * 20)]


def test_work_on_weights_and_on_nobodys_behalf_is_free() -> None:
    class Merged(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            x.mean()  # nothing reads it
            return F.conv2d(x, self.weight + self.weight.flip(0).exp(), self.bias, padding=1)

    assert kernels(Merged(8, 8, 3), 8, 5) == [Kernel("conv", 8, 8, 5, 5, 3.0)]


@pytest.mark.parametrize(("module", "what"), [
    (nn.Conv2d(8, 8, (1, 5)), r"kernel_shape \[1, 5\]"), (nn.Conv2d(8, 8, 2), r"kernel_shape \[2, 2\]"),
    (nn.Conv2d(8, 8, 9, padding=4), r"kernel_shape \[9, 9\]"), (nn.Conv2d(8, 8, 3, 3), r"strides \[3, 3\]"),
    (nn.Conv2d(8, 8, 3, (1, 2), 1), r"strides \[1, 2\]"), (nn.Conv2d(8, 8, 3, dilation=2), r"dilations \[2, 2\]"),
    (nn.Conv2d(8, 8, 3, padding=2), r"pads that make \[18, 18\] of \[16, 16\]"),
    (nn.MaxPool2d(3, 1, 1, dilation=2), r"dilations \[2, 2\]"), (nn.MaxPool2d(9, 1, 4), r"kernel_shape \[9, 9\]"),
    (nn.Upsample(scale_factor=2, mode="bicubic"), "operator")])
def test_what_the_rows_never_saw_is_unknown(module: nn.Module, what: str) -> None:
    with pytest.raises(UserError, match=f"no kernel is known for .*{what}"):
        kernels(module, 8, 16)


@pytest.mark.parametrize("module", [nn.Conv2d(8, 8, 1, dilation=2), nn.Conv2d(8, 8, 3, padding="same"),
                                    nn.MaxPool2d(16), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(8, 8, 7, 2, 3)])
def test_what_is_as_the_rows_are_has_one_kernel(module: nn.Module) -> None:
    assert len(kernels(module, 8, 16)) == 1


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.ConvTranspose2d(8, 8, 2), nn.LayerNorm(8), nn.Unfold(2)])
def test_an_operator_without_a_rule_is_named_never_free(module: nn.Module) -> None:
    with pytest.raises(UserError, match=rf"^{type(module).__name__}: no kernel is known for the operator aten\.\S+$"):
        kernels(module, 8, 8)


@pytest.mark.parametrize("module", [nn.InstanceNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False)])
def test_norms_that_read_their_input_are_refused(module: nn.Module) -> None:
    with pytest.raises(UserError, match="statistics of its input"):
        kernels(module, 8, 8)
