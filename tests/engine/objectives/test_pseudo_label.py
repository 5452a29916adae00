"""Pseudo-labels: the loss equals a plain reference; Lee's ramp and the report's thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.fixmatch import FixMatchTerms, fixmatch_loss
from engine.objectives.pseudo_label import growing_threshold, label_weight


def pseudo_label_loss(
    labeled: Tensor, labels: Tensor, guesses: Tensor, threshold: float, weight: float
) -> FixMatchTerms:
    return fixmatch_loss(labeled, labels, guesses, guesses, threshold, weight)


def logits(rows: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_equals_a_plain_reference(threshold: float) -> None:
    labeled, unlabeled = logits(3, 0), logits(20, 1)
    p, q = labeled.softmax(1).numpy(), unlabeled.softmax(1).numpy()
    supervised = np.mean([-np.log(p[i, label]) for i, label in enumerate(LABELS)])
    unsupervised = sum(-np.log(row.max()) for row in q if row.max() >= threshold) / 20
    terms = pseudo_label_loss(labeled, LABELS, unlabeled, threshold, 0.5)
    assert float(terms.supervised) == pytest.approx(supervised, rel=1e-12)
    assert float(terms.unsupervised) == pytest.approx(unsupervised, rel=1e-12, abs=1e-12)
    assert float(terms.loss) == pytest.approx(supervised + 0.5 * unsupervised, rel=1e-12)
    assert float(terms.mask_rate) == pytest.approx(np.mean([row.max() >= threshold for row in q]))


def test_gradient_pushes_towards_the_guess_of_confident_rows() -> None:
    unlabeled = logits(20, 1).requires_grad_()
    pseudo_label_loss(logits(3, 0), LABELS, unlabeled, 0.9, 1.0).loss.backward()
    assert unlabeled.grad is not None
    confident = unlabeled.softmax(1).max(1).values >= 0.9
    assert unlabeled.grad[~confident].abs().max() == 0
    guess = unlabeled.argmax(1, keepdim=True)
    assert (unlabeled.grad.gather(1, guess)[confident] < 0).all()


def test_gradient() -> None:
    inputs = (logits(3, 0).requires_grad_(), logits(6, 1).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: pseudo_label_loss(a, LABELS, b, 0.5, 0.7).loss, inputs)


def test_does_not_depend_on_order_names_or_an_offset_and_halves_average() -> None:
    labeled, unlabeled, labels = logits(4, 0), logits(20, 1), torch.tensor([0, 3, 1, 1])

    def loss(few: Tensor, many: Tensor, names: Tensor, offset: float = 0.0) -> float:
        guessed = unlabeled[many][:, names] + offset
        target = torch.argsort(names)[labels[few]]
        return float(pseudo_label_loss(labeled[few][:, names] - offset, target, guessed, 0.8, 0.7).loss)

    few, many, names = torch.arange(4), torch.arange(20), torch.arange(4)
    expected = loss(few, many, names)
    assert loss(few.flip(0), many.roll(7), names) == pytest.approx(expected, rel=1e-12)
    assert loss(few, many, torch.tensor([2, 0, 3, 1])) == pytest.approx(expected, rel=1e-12)
    assert loss(few, many, names, offset=5.0) == pytest.approx(expected, rel=1e-12)
    halves = [loss(few[2 * i : 2 * i + 2], many[10 * i : 10 * i + 10], names) for i in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(expected, rel=1e-12)


def test_weight_is_lees_ramp() -> None:
    weights = [label_weight(epoch, 100, 600, 3.0) for epoch in (0, 99, 100, 350, 600, 900)]
    assert weights == pytest.approx([0, 0, 0, 1.5, 3, 3])
    assert label_weight(0, 0, 0, 2.0) == 2.0


def test_thresholds_of_the_report() -> None:
    assert [growing_threshold(epoch, 0.95, 0.0, 0.99) for epoch in (0, 9)] == [0.95, 0.95]
    assert growing_threshold(5, 1.0, 0.0, 0.99) == 1.0
    growing = [growing_threshold(epoch, 0.9, 0.02, 0.99) for epoch in range(7)]
    assert growing == pytest.approx([0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 0.99])
