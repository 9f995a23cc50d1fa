"""The methods of distillation: their losses by hand; each of them trains, continues exactly, and is a setting."""

from __future__ import annotations

import copy
import math
import typing

import pytest
import torch
from every import every
from torch import Tensor

from nas.arch import Arch
from nas.config.training import Training
from nas.pipeline.train_one import choose_arch
from nas.plan import Layout
from nas.subnet import build
from nas.training import randomness
from nas.training.data import Data, load
from nas.training.distill import BEGIN, METHODS, Distiller, NetOutput, channels, flow
from nas.training.finetune import FineTuning
from nas.training.recipes import WITHOUT_TEACHER, FineTuningRecipe


def logits(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[math.log(p) for p in row] for row in rows], dtype=torch.float64)


STUDENT, TEACHER, LABEL = logits((.5, .5)), logits((.75, .25)), torch.tensor([0])
CE_STUDENT, CE_TEACHER = math.log(2), -math.log(.75)
KL = .75 * math.log(1.5) + .25 * math.log(.5)  # of the student from the teacher
BACK = .5 * math.log(.5 / .75) + .5 * math.log(.5 / .25)


def made(name: str, layout: Layout, share: float = .25, smoothing: float = 0.0) -> Distiller:
    student, teacher = (build(layout, choose_arch(layout, what, 0)) for what in ("smallest", "largest"))
    return METHODS[name](student, teacher, share, smoothing)


def test_logits_alone_by_hand(tiny: Layout) -> None:
    soft = torch.tensor([math.sqrt(.75), math.sqrt(.25)], dtype=torch.float64)  # the teacher's at temperature 2
    soft = soft / soft.sum()
    at_2 = 4 * float((soft * (soft / .5).log()).sum())
    said = (NetOutput(STUDENT), NetOutput(TEACHER), LABEL, .5)
    for name in ("kd", "assistant"):
        assert float(made(name, tiny).loss(*said)) == pytest.approx(.75 * CE_STUDENT + .25 * at_2)
    assert float(made("born-again", tiny).loss(*said)) == pytest.approx(math.log(2))  # -0.75 ln 0.5 - 0.25 ln 0.5
    assert float(made("mutual", tiny).loss(*said)) == pytest.approx(CE_STUDENT + KL + CE_TEACHER + BACK)


def test_what_the_other_says_is_a_constant(tiny: Layout) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    for name in ("kd", "born-again"):
        made(name, tiny).loss(NetOutput(student), NetOutput(teacher), LABEL, .5).backward()
        assert teacher.grad is None
    made("mutual", tiny).loss(NetOutput(student), NetOutput(teacher), LABEL, .5).backward()
    # d/dz of CE(own) + KL(other, own) is (q - y) + (q - p): (0.75 - 1) + (0.75 - 0.5) = 0 for the teacher's first
    assert teacher.grad is not None and torch.allclose(teacher.grad, torch.zeros(1, 2, dtype=torch.float64), atol=1e-12)


def test_flow_by_hand() -> None:
    first = torch.tensor([[[[1., 2.], [3., 4.]]]])
    second = torch.tensor([[[[1., 0.], [0., 1.]], [[2., 2.], [2., 2.]]]])
    assert flow(first, second).tolist() == [[[1.25, 5.0]]]  # (1 + 4) / 4, 2 (1 + 2 + 3 + 4) / 4
    assert flow(first, second[..., :1, :1]).tolist() == [[[2.5, 5.0]]]  # the mean of the first, times 1 and 2


def test_fsp_by_hand(tiny: Layout) -> None:
    method, one = made("fsp", tiny), torch.ones(1, 1, 2, 2)
    student, teacher = NetOutput(STUDENT, (one, 2 * one, one)), NetOutput(TEACHER, (one, 3 * one, 2 * one))
    # flows 2 and 2 against 3 and 6: (1 + 16) / 2
    assert float(method.loss(student, teacher, LABEL, 0.0)) == 8.5
    assert float(method.loss(student, teacher, LABEL, BEGIN)) == pytest.approx(CE_STUDENT)


def test_hints_by_hand(tiny: Layout) -> None:
    method = made("hints", tiny)
    maps = [torch.randn(2, c, 4, 4) for c in channels(build(tiny, choose_arch(tiny, "largest", 0)))]
    with torch.no_grad():  # the regressor is the identity
        method.regressor.weight.copy_(torch.eye(len(method.regressor.weight))[:, :, None, None])
        method.regressor.bias.zero_()
    student, teacher = NetOutput(STUDENT, tuple(maps)), NetOutput(TEACHER, tuple(map_ + 3 for map_ in maps))
    assert float(method.loss(student, teacher, LABEL, 0.0).detach()) == pytest.approx(4.5)  # 3^2 / 2
    after = method.loss(student, teacher, LABEL, BEGIN)
    assert torch.equal(after, made("kd", tiny).loss(student, teacher, LABEL, BEGIN))


def test_channels_are_those_of_the_maps(tiny: Layout) -> None:
    assert channels(build(tiny, choose_arch(tiny, "smallest", 0))) == [8, 16]


def test_every_method_is_a_setting() -> None:
    known = set(typing.get_args(Training.model_fields["distill"].annotation))
    assert known == {*METHODS, *WITHOUT_TEACHER}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", data_dir=None, size=16, seed=0, limit=120)


def tuning(name: str, layout: Layout, digits: Data, teacher: torch.nn.Module, arch: Arch) -> FineTuning:
    with randomness.seeded("student"):
        model = build(layout, arch)
    recipe = FineTuningRecipe(epochs=8, batch=32, lr=.01, weight_decay=.01, label_smoothing=.05, augment="none",
                              distill_weight=.5, distill=name)
    return FineTuning("net", model, teacher, digits, recipe, 0, torch.device("cpu"))


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_continues_exactly(name: str, tiny_space: object, digits: Data) -> None:
    from nas.plan import Task, layout

    tiny = layout(tiny_space, Task(16, 3, 10))
    with randomness.seeded("teacher"):
        teacher = build(tiny, choose_arch(tiny, "largest", 0))
    before = copy.deepcopy(teacher.state_dict())
    arch = choose_arch(tiny, "random", 1)
    whole, cut = (tuning(name, tiny, digits, teacher, arch) for _ in range(2))
    losses = []
    for _ in range(8):
        losses.append(whole.epoch().loss)
        cut.epoch()
        state = cut.state_dict()
        cut = tuning(name, tiny, digits, teacher, arch)
        cut.load_state_dict(state)
    after = losses[1:]  # hints and fsp begin with a loss of their own
    assert after[-1] < after[0] and every(map(math.isfinite, losses))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, cut.model.state_dict()[key]), key
    assert every(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
