"""Builds stems, classifier heads and the heads of early exits: fixed parts of a space that cost like any operator."""

from __future__ import annotations

from torch import Tensor, nn

from nas.ops.layers import ConvBN, Dropout, activation
from nas.ops.registry import Block, register


@register("stem")
class Stem(Block):
    """Computes convolution, batch norm, activation: [N, in_ch, S, S] -> [N, out_ch, S / stride, S / stride].

    With stride 4 a max pooling follows, with a window of ``pool`` (ResNet); at smaller strides there is none.
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int, kernel: int = 3, act: str = "relu", pool: int = 0) -> None:
        super().__init__()
        if stride > 2 and (pool < 2 or pool % 2 == 0):
            raise ValueError(f"stride {stride} needs an odd window of the pooling, for example pool=3")
        self.conv = ConvBN(in_ch, out_ch, kernel, min(stride, 2), act=act)
        self.pool = nn.MaxPool2d(pool, 2, pool // 2) if stride > 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


@register("head")
class Head(Block):
    """Computes 1x1 to ``hidden``, global mean, optional linear to ``features``, dropout, linear: [N, out_ch] logits.

    ``features=1280`` is GhostNet's and MobileNetV3's tail, ``features=0`` MobileNetV2's. ``hidden=0`` leaves the
    1x1 convolution out.
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int = 0, features: int = 0, act: str = "relu",
                 dropout_percent: int = 0) -> None:
        super().__init__()
        if hidden < 0 or features < 0:
            raise ValueError("hidden and features are numbers of channels, or 0 for none")
        self.conv = ConvBN(in_ch, hidden, act=act) if hidden else nn.Identity()
        width = hidden or in_ch
        self.features = nn.Sequential(nn.Linear(width, features), activation(act)) if features else nn.Identity()
        self.dropout = Dropout(dropout_percent / 100)
        self.classifier = nn.Linear(features or width, out_ch)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Computes the vector that is classified: [N, in_ch, S, S] -> [N, features or hidden or in_ch]."""
        return self.features(self.conv(x).mean((2, 3)))

    def classify(self, embedded: Tensor) -> Tensor:
        return self.classifier(self.dropout(embedded))


@register("exit_head")
class ExitHead(Block):
    """Classifies at an early exit by a small strided convolution, global mean, linear: -> [N, out_ch] logits.

    ``hidden`` is the width of the convolution, a depthwise with stride 2 and a 1x1 (separable as the exits of Zhang et
    al., arXiv 1905.08094; MSDNet's on CIFAR are dense, 128 wide); ``hidden=0`` leaves it out.
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int, hidden: int = 0, kernel: int = 3,
                 act: str = "relu") -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError("hidden is a number of channels, or 0 for no convolution")
        self.conv = nn.Sequential(ConvBN(in_ch, in_ch, kernel, 2, depthwise=True, act=act),
                                  ConvBN(in_ch, hidden, act=act)) if hidden else nn.Identity()
        self.classifier = nn.Linear(hidden or in_ch, out_ch)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Computes the vector that is classified: [N, in_ch, S, S] -> [N, hidden or in_ch]."""
        return self.conv(x).mean((2, 3))

    def classify(self, embedded: Tensor) -> Tensor:
        return self.classifier(embedded)
