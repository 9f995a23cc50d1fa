"""The alpha-divergence: its two Kullback-Leibler limits, its gradient, its clipping, by hand."""

import math

import pytest
import torch
from torch import Tensor

from nas.training.distill import INPLACE, adaptive, alpha_divergence, kd

NO_CLIP = float("inf")


def logits(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[math.log(p) for p in row] for row in rows], dtype=torch.float64)


def mild(seed: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q), by its definition."""
    p, q = p.softmax(1), q.softmax(1)
    return (p * (p / q).log()).sum(1)


def test_by_hand() -> None:
    teacher, student = logits((0.75, 0.25)), logits((0.5, 0.5))
    # alpha -1: (q^2/p summed - 1) / 2 = (1/3 + 1 - 1) / 2; alpha 2: (p^2/q summed - 1) / 2 = (9/8 + 1/8 - 1) / 2
    assert float(alpha_divergence(student, teacher, -1.0)) == pytest.approx(1 / 6)
    assert float(alpha_divergence(student, teacher, 2.0)) == pytest.approx(1 / 8)
    assert float(alpha_divergence(student, teacher, 1.0)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(alpha_divergence(student, teacher, 0.0)) == pytest.approx(0.5 * math.log(4 / 3))
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        assert float(alpha_divergence(teacher, teacher, alpha)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("limit", "closed"), [(1.0, lambda p, q: kl(p, q)), (0.0, lambda p, q: kl(q, p))])
def test_the_limits_are_kullback_leibler(limit: float, closed: object) -> None:
    student, teacher = mild(0), mild(1)
    expected = closed(teacher, student)
    assert torch.allclose(alpha_divergence(student, teacher, limit), expected)
    for step in (1e-4, -1e-4):
        assert torch.allclose(alpha_divergence(student, teacher, limit + step, NO_CLIP), expected, rtol=1e-3)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_value_where_nothing_is_cut(alpha: float) -> None:
    teacher = mild(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda student: alpha_divergence(student, teacher, alpha, NO_CLIP),
                                    mild(0).requires_grad_())
    student = mild(0).requires_grad_()
    alpha_divergence(student, teacher, alpha).sum().backward()
    assert teacher.grad is None and student.grad is not None  # the teacher is not taught


def test_ratios_are_cut_at_five() -> None:
    teacher, student = logits((0.01, 0.99)), logits((0.5, 0.5)).requires_grad_()
    value = alpha_divergence(student, teacher, -1.0)  # q/p = 50 counts as 5, q/p = 50/99 in full
    assert value.item() == pytest.approx((0.5 * 5 + 0.5 * 50 / 99 - 1) / 2)
    # weights q (p/q)^-1 / -1 = -2.5 and -25/99; d log q_i / d logit_j = [i = j] - q_j
    gradient = torch.autograd.grad(value.sum(), student)[0]
    a, b = 2.5, 25 / 99
    assert gradient[0].tolist() == pytest.approx([a - (a + b) / 2, b - (a + b) / 2])


def test_the_larger_of_the_two_counts_image_by_image() -> None:
    sure, vague = (0.98, 0.01, 0.01), (0.4, 0.3, 0.3)
    student, teacher = logits(sure, vague), logits(vague, sure)
    low, high = alpha_divergence(student, teacher, -1.0), alpha_divergence(student, teacher, 1.0)
    assert (low > high).tolist() == [False, True]
    assert float(adaptive(student, teacher)) == pytest.approx(float(high[0] + low[1]) / 2)


def test_no_overflow_where_a_class_is_impossible() -> None:
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    value = adaptive(student, -student.detach())
    assert math.isfinite(value.item()) and torch.autograd.grad(value, student)[0].isfinite().all()


def test_kl_stays_what_it_was() -> None:
    assert INPLACE["kl"] is kd and set(INPLACE) == {"kl", "alpha"}
