"""A network with early exits as it runs: stages one after another, and how their logits become predictions."""

from __future__ import annotations

from torch import Tensor, nn

from nas.subnet import Subnet


class Combine(nn.Module):
    """What makes the prediction of an exit of its own logits and those below; here: its own alone.

    ``state`` is all that is handed from exit to exit, so that the network can be cut at any of them: [N, width(index)]
    into exit ``index``, None into the first and where the width is 0.
    """

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits [N, classes] of exit ``index`` -> its prediction [N, classes] (logits again) and the next state."""
        return logits, None

    def width(self, index: int, classes: int) -> int:
        """Columns of the state into exit ``index``."""
        return 0


class Additive(Combine):
    """F_n = f_n + t F_{n-1}, F_1 = f_1 (BoostNet, Yu et al., arXiv 2211.16726): t < 1 softens what is below."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t

    def forward(self, index: int, logits: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        prediction = logits if state is None else logits + self.t * state
        return prediction, prediction

    def width(self, index: int, classes: int) -> int:
        return classes if index else 0


class Segment(nn.Module):
    """The network between two exits: a map [N, C, S, S] (the image in the first) and the state from the one below.

    Returns the prediction [N, classes] of its exit and, but for the last, the map and (where there is one) the state.
    The modules are the network's own.
    """

    def __init__(self, index: int, last: bool, trunk: nn.Module, head: nn.Module, combine: Combine) -> None:
        super().__init__()
        self.index, self.last = index, last
        self.trunk, self.head, self.combine = trunk, head, combine

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
        x = self.trunk(x)
        prediction, state = self.combine(self.index, self.head(x), state)
        if self.last:
            return (prediction,)
        return (prediction, x) if state is None else (prediction, x, state)


class MultiExit(nn.Module):
    """[N, in_ch, S, S] -> predictions [N, classes] of every exit in order, the head's last."""

    def __init__(self, net: Subnet, combine: Combine | None = None) -> None:
        super().__init__()
        self.net, self.combine = net, combine or Combine()

    def forward(self, x: Tensor) -> list[Tensor]:
        predictions, state = [], None
        for index, logits in enumerate(self.net.logits(x)):
            prediction, state = self.combine(index, logits, state)
            predictions.append(prediction)
        return predictions

    def segments(self) -> list[Segment]:
        stages = self.net.stages()
        return [Segment(index, index == len(stages) - 1, trunk, head, self.combine)
                for index, (trunk, head) in enumerate(stages)]
