"""The warm-up of the largest network, and of what is to stand in for its blocks."""

import random

import pytest
import torch
import torch.nn.functional as F
from batch_norms import scrambled
from every import every

from nas import sampling
from nas.arch import SKIP
from nas.config.training import Training
from nas.decision import one_hot
from nas.plan import Layout
from nas.supernet.net import Supernet
from nas.training.blockwise import TINY, blockwise
from nas.training.stepper import Stepper

IMAGES, LABELS = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


@pytest.fixture
def net(tiny: Layout) -> Supernet:
    torch.manual_seed(0)
    return scrambled(Supernet(tiny)).train()  # residual branches begin at zero: nothing would differ


def loss(net: Supernet, students: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    big = one_hot(sampling.decode(net.layout, [len(slot.ops) - 1 for slot in net.layout.slots]))
    drawn = one_hot(sampling.sample(net.layout, random.Random(1))) if students else None
    return blockwise(net, Stepper(torch.device("cpu")), big, drawn, 0.0)(IMAGES, LABELS)


def test_without_students_it_is_the_teachers_loss(net: Supernet) -> None:
    value, figures = loss(net, students=False)
    big = one_hot(sampling.decode(net.layout, [len(slot.ops) - 1 for slot in net.layout.slots]))
    assert float(value.detach()) == pytest.approx(float(F.cross_entropy(net(IMAGES, big), LABELS).detach()))
    assert set(figures) == {"loss_largest"}


def test_each_slot_learns_the_map_behind_it_from_the_map_before_it(net: Supernet) -> None:
    """Slot by slot by hand; a student that is the teacher has nothing to learn."""
    big = one_hot(sampling.decode(net.layout, [len(slot.ops) - 1 for slot in net.layout.slots]))
    drawn, x, errors = one_hot(sampling.sample(net.layout, random.Random(1))), net.stem(IMAGES), []
    for slot, theirs, ours in zip(net.slots, big.slots, drawn.slots, strict=True):
        before, x = x, slot(x, theirs)
        if ours[0].branch != SKIP:
            errors.append(float((((slot(before, ours) - x) ** 2).mean() / (x.var() + TINY)).detach()))
    value, figures = loss(net, students=True)
    assert float(figures["blockwise"].detach()) == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert float(value.detach()) == pytest.approx(float(figures["loss_largest"].detach()) + sum(errors), rel=1e-4)
    _, same = blockwise(net, Stepper(torch.device("cpu")), big, big, 0.0)(IMAGES, LABELS)
    assert float(same["blockwise"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_no_slot_learns_through_another(net: Supernet) -> None:
    """A student's error moves the weights of its own slot alone: none of the stem's, which all others stand on."""
    value, figures = loss(net, students=True)
    (value - figures["loss_largest"]).backward()
    gradient = [p.grad for p in net.stem.parameters()]
    assert every(g is None or not g.any() for g in gradient)
    learned = [any(p.grad is not None and p.grad.any() for p in slot.parameters()) for slot in net.slots]
    drawn = sampling.sample(net.layout, random.Random(1)).ops
    dearest = [slot.ops[-1] for slot in net.layout.slots]
    assert learned == [op not in (SKIP, best) for op, best in zip(drawn, dearest, strict=True)] and any(learned)


def test_the_shares_are_of_one_warm_up() -> None:
    with pytest.raises(ValueError, match="together at most 1"):
        Training(largest_first=0.6, blockwise=0.5)
    given = Training(largest_first=0.7, blockwise=0.3)
    assert given.beginning(trained=False) == given.beginning(trained=True) == (0.7, 0.3)


@pytest.mark.parametrize(("given", "shares"), [
    ({}, (0.6, 0.4)), ({"largest_first": 1.0}, (1.0, 0.0)), ({"largest_first": 0.0}, (0.0, 0.4)),
    ({"blockwise": 0.0}, (0.6, 0.0)), ({"blockwise": 0.5}, (0.5, 0.5)),
    ({"largest_first": 0.0, "blockwise": 0.0}, (0.0, 0.0))])
def test_a_share_that_was_given_leaves_the_rest(given: dict[str, float], shares: tuple[float, float]) -> None:
    assert Training(**given).beginning(trained=False) == shares
    assert Training(**given).beginning(trained=True) == (shares if given else (0, 0))


def test_maps_end_in_what_forward_gives(net: Supernet) -> None:
    arch = one_hot(sampling.sample(net.layout, random.Random(2)))
    logits, maps = net.eval().maps(IMAGES, arch)
    assert torch.equal(logits, net(IMAGES, arch)) and len(maps) == len(net.slots)
    assert every(torch.equal(maps[i][1], maps[i + 1][0]) for i in range(len(maps) - 1))
    assert torch.equal(net.head(maps[-1][1]), logits)
