"""Mean Teacher's distances and ramps equal plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.mean_teacher import class_loss, consistency_loss, ramp_up, teacher_decay


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probabilities(values: Tensor) -> np.ndarray:
    exponentials = np.exp(values.numpy())
    return exponentials / exponentials.sum(1, keepdims=True)


def test_mse_is_the_mean_over_rows_and_classes() -> None:
    student, teacher = logits(0), logits(1)
    expected = np.mean((probabilities(student) - probabilities(teacher)) ** 2)
    assert float(consistency_loss(student, teacher, "mse")) == pytest.approx(expected, rel=1e-12)


def test_kl_is_of_the_student_from_the_teacher() -> None:
    student, teacher = logits(0), logits(1)
    p, q = probabilities(teacher), probabilities(student)
    expected = np.mean(np.sum(p * np.log(p / q), axis=1))
    assert float(consistency_loss(student, teacher, "kl")) == pytest.approx(expected, rel=1e-12)


def test_the_class_loss_is_divided_by_all_rows_of_the_step() -> None:
    """Each unlabelled row counts as a class loss of 0, so the class loss shrinks as mu grows."""
    labelled, labels = logits(0)[:3], torch.tensor([4, 0, 2])
    per_row = -np.log(probabilities(labelled)[range(3), labels.numpy()])
    for num_rows in (3, 7, 12):
        padded = np.concatenate([per_row, np.zeros(num_rows - 3)])
        assert float(class_loss(labelled, labels, num_rows)) == pytest.approx(padded.mean(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: class_loss(x, labels, 7), labelled.clone().requires_grad_())
    halves = [class_loss(logits(0)[i : i + 2], labels[:2], 6) for i in (0, 2)]  # two ranks with six rows each
    whole = class_loss(logits(0)[:4], labels[:2].repeat(2), 12)
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-12)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_is_zero_for_agreement_alone_and_teaches_the_student_alone(distance) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = consistency_loss(student, teacher, distance)
    assert float(loss.detach()) > 1e-3
    loss.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 1e-3
    assert float(consistency_loss(logits(0), logits(0) + 3.0, distance)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_gradient(distance) -> None:
    teacher = logits(1)
    check = torch.autograd.gradcheck
    assert check(lambda s: consistency_loss(s, teacher, distance), logits(0).requires_grad_())


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_does_not_depend_on_order_names_or_an_offset(distance) -> None:
    student, teacher = logits(0), logits(1)
    expected = float(consistency_loss(student, teacher, distance))
    rows, names = torch.tensor([3, 1, 6, 0, 2, 5, 4]), torch.tensor([2, 0, 4, 1, 3])
    offset = torch.arange(7.0)[:, None]
    for changed in (
        (student[rows], teacher[rows]),
        (student[:, names], teacher[:, names]),
        (student + offset, teacher - offset),
    ):
        assert float(consistency_loss(*changed, distance)) == pytest.approx(expected, rel=1e-12)
    swapped = float(consistency_loss(teacher, student, distance))
    assert (swapped == pytest.approx(expected, rel=1e-12)) == (distance == "mse"), "a divergence has a side"


def test_the_mean_over_ranks_is_the_mean_over_all_rows() -> None:
    student, teacher = logits(0)[:6], logits(1)[:6]
    for distance in ("mse", "kl"):
        parts = [consistency_loss(student[i : i + 3], teacher[i : i + 3], distance) for i in (0, 3)]
        whole = consistency_loss(student, teacher, distance)
        assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-12)


def test_the_students_own_logits_as_the_teachers_are_refused() -> None:
    same = logits(0)
    with pytest.raises(ValueError, match="same tensor twice"):
        consistency_loss(same, same)
    with pytest.raises(ValueError, match="one shape"):
        consistency_loss(same, same[:2])


def test_ramps() -> None:
    assert ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert ramp_up(5, 10) == pytest.approx(math.exp(-1.25))
    assert ramp_up(10, 10) == ramp_up(99, 10) == ramp_up(0, 0) == 1.0
    assert [teacher_decay(step, 3) for step in range(5)] == [0.99, 0.99, 0.99, 0.999, 0.999]
