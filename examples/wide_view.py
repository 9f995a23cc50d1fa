"""An operator: a large depthwise kernel, then a ReLU bottleneck. Searched by own_operator.py, checked by

    nas spaces --check examples/wide_view.yaml --ops examples/wide_view.py --size 32 --target gpu-v100
"""

from torch import Tensor

from nas.ops import Block, register
from nas.ops.layers import ConvBN, conv_slices, start_at_zero
from nas.ops.registry import Slices


@register("wide_view")
class WideView(Block):
    elastic = ("kernel",)  # a smaller kernel is the centre of the largest: they share weights

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int, kernel: int = 7) -> None:
        super().__init__()
        self.max_hidden = hidden
        self.look = ConvBN(in_ch, in_ch, kernel, stride, depthwise=True, act="none")
        self.expand = ConvBN(in_ch, hidden, act="relu")
        self.project = ConvBN(hidden, out_ch, act="none")
        self.residual = stride == 1 and in_ch == out_ch
        if self.residual:
            start_at_zero(self.project)  # the block begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(self.look(x)))
        return x + y if self.residual else y

    def slices(self, hidden: int) -> Slices:
        first = ((0, hidden),)  # a narrower copy uses the first channels
        return {**conv_slices("expand", first, None), **conv_slices("project", None, first)}
