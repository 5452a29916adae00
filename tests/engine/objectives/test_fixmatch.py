"""FixMatch's loss equals the equations written out in NumPy, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.fixmatch import RecentGuesses, confident_guesses, fixmatch_loss


def logits(rows: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, 4, dtype=torch.float64, generator=generator)


LABELS = torch.tensor([0, 3, 1, 1, 2])


def reference(labeled: Tensor, weak: Tensor, strong: Tensor, threshold: float) -> tuple[float, float]:
    """Compute equations 3 and 4 row by row."""

    def probabilities(row: np.ndarray) -> np.ndarray:
        return np.exp(row) / np.exp(row).sum()

    supervised = [
        -np.log(probabilities(row)[label]) for row, label in zip(labeled.numpy(), LABELS, strict=True)
    ]
    unsupervised = 0.0
    for weak_row, strong_row in zip(weak.numpy(), strong.numpy(), strict=True):
        q = probabilities(weak_row)
        if q.max() >= threshold:
            unsupervised -= np.log(probabilities(strong_row)[q.argmax()])
    return float(np.mean(supervised)), unsupervised / len(weak)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_equals_the_equations(threshold: float, weight: float) -> None:
    labeled, weak, strong = logits(5, 0), logits(12, 1), logits(12, 2)
    terms = fixmatch_loss(labeled, LABELS, weak, strong, threshold, weight)
    supervised, unsupervised = reference(labeled, weak, strong, threshold)
    assert float(terms.supervised) == pytest.approx(supervised, rel=1e-12)
    assert float(terms.unsupervised) == pytest.approx(unsupervised, rel=1e-12, abs=1e-12)
    assert float(terms.loss) == pytest.approx(supervised + weight * unsupervised, rel=1e-12)
    share = (weak.softmax(1).max(1).values >= threshold).double().mean()
    assert float(terms.mask_rate) == pytest.approx(float(share))


def test_gradient_flows_through_the_strong_view_alone() -> None:
    labeled, weak, strong = (t.requires_grad_() for t in (logits(5, 0), logits(12, 1), logits(12, 2)))
    fixmatch_loss(labeled, LABELS, weak, strong, 0.7).loss.backward()
    assert weak.grad is None
    assert strong.grad is not None
    _, mask = confident_guesses(weak, 0.7)
    assert 0 < int(mask.sum()) < 12
    assert strong.grad[~mask].abs().max() == 0
    assert strong.grad[mask].abs().sum(1).min() > 0


def test_gradient() -> None:
    labeled, strong = logits(5, 0).requires_grad_(), logits(6, 2).requires_grad_()
    weak = logits(6, 1)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return fixmatch_loss(a, LABELS, weak, b, 0.6).loss

    assert torch.autograd.gradcheck(loss, (labeled, strong))


def test_does_not_depend_on_order_names_or_an_offset() -> None:
    labeled, weak, strong = logits(5, 0), logits(12, 1), logits(12, 2)

    def loss(few: Tensor, many: Tensor, names: Tensor, offset: float = 0.0) -> float:
        views = (weak[many][:, names] + offset, strong[many][:, names] - offset)
        target = torch.argsort(names)[LABELS[few]]
        return float(fixmatch_loss(labeled[few][:, names] + offset, target, *views, 0.7, 3.0).loss)

    few, many, names = torch.arange(5), torch.arange(12), torch.arange(4)
    expected = loss(few, many, names)
    assert loss(few.flip(0), many.roll(5), names) == pytest.approx(expected, rel=1e-12)
    assert loss(few, many, torch.tensor([2, 0, 3, 1])) == pytest.approx(expected, rel=1e-12)
    assert loss(few, many, names, offset=5.0) == pytest.approx(expected, rel=1e-12)


def test_the_mean_over_ranks_is_the_mean_over_all_rows() -> None:
    labeled, weak, strong = logits(4, 0), logits(12, 1), logits(12, 2)
    whole = fixmatch_loss(labeled, LABELS[:4], weak, strong, 0.7)
    parts = [
        fixmatch_loss(labeled[2 * r : 2 * r + 2], LABELS[2 * r : 2 * r + 2], weak[6 * r : 6 * r + 6],
                      strong[6 * r : 6 * r + 6], 0.7)
        for r in range(2)
    ]  # fmt: skip
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts) / 2, rel=1e-12)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[12, 4\] and \[11, 4\]"):
        fixmatch_loss(logits(5, 0), LABELS, logits(12, 1), logits(11, 2))


def test_recent_guesses_align_and_judge_later_ones() -> None:
    recent = RecentGuesses(3)
    q = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    recent.update(q.log(), decay=0.0)
    torch.testing.assert_close(recent.confidence, torch.tensor(0.6))
    torch.testing.assert_close(recent.classes, torch.tensor([0.6, 0.3, 0.1]))
    recent.update(torch.tensor([[0.2, 0.2, 0.6]]).log(), decay=0.5)
    torch.testing.assert_close(recent.confidence, torch.tensor(0.6))
    torch.testing.assert_close(recent.classes, torch.tensor([0.4, 0.25, 0.35]))

    shares = q / torch.tensor([0.4, 0.25, 0.35])
    expected = shares / shares.sum(1, keepdim=True)
    torch.testing.assert_close(recent.aligned(q.log()).softmax(1), expected)
    assert recent.threshold(q.log(), by_class=False) is recent.confidence
    rows = torch.tensor([[0.1, 0.8, 0.1], [0.5, 0.4, 0.1]]).log()
    found = recent.threshold(rows, by_class=True)
    torch.testing.assert_close(found, 0.6 * torch.tensor([0.25, 0.4]) / 0.4)
    assert confident_guesses(rows, found)[1].tolist() == [True, False]


def test_a_class_that_is_never_guessed_leaves_alignment_finite() -> None:
    recent = RecentGuesses(2)
    recent.update(torch.tensor([[200.0, 0.0]]), decay=0.0)
    assert recent.aligned(torch.tensor([[200.0, 0.0]])).isfinite().all()
