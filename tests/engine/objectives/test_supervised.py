"""Mixing images and labels: shares, boxes and the loss equal plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.objectives.supervised import Mixed, draw_box, draw_share, mix, mixed_cross_entropy
from loaders.common.errors import UserError

X = torch.rand(6, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
PARTNER = torch.tensor([1, 0, 3, 2, 5, 4])


def test_mixup_blends_neighbours() -> None:
    mixed = mix(X, LABELS, "mixup", 1.0, seed=3, step=5)
    assert 0 < mixed.share < 1
    torch.testing.assert_close(mixed.x, mixed.share * X + (1 - mixed.share) * X[PARTNER])
    assert torch.equal(mixed.partner_labels, LABELS[PARTNER])


def test_mixup_of_rounded_views_is_not_rounded_again() -> None:
    x = torch.rand(4, 3, 5, 5).bfloat16()
    labels = torch.arange(4)
    found, expected = (mix(views, labels, "mixup", 1.0, 0, 0).x for views in (x, x.float()))
    assert torch.equal(found, expected)


def test_cutmix_puts_in_a_box_and_counts_its_pixels() -> None:
    seen = set()
    for step in range(20):
        mixed = mix(X, LABELS, "cutmix", 1.0, seed=3, step=step)
        own = (mixed.x == X).all(1)
        assert ((mixed.x == X[PARTNER]).all(1) | own).all()
        assert float(own.double().mean()) == pytest.approx(mixed.share)
        seen.add(mixed.share)
    assert len(seen) > 8


def test_draws_depend_on_seed_and_step_alone_and_follow_beta() -> None:
    assert draw_share(1.0, 3, 5) == draw_share(1.0, 3, 5) != draw_share(1.0, 3, 6)
    assert draw_share(1.0, 4, 5) != draw_share(1.0, 3, 5)
    assert draw_box(0.5, 12, 10, 3, 5) == draw_box(0.5, 12, 10, 3, 5)
    shares = [draw_share(0.2, 0, step) for step in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(0.25 / 1.4, abs=0.01)  # the variance of Beta(0.2, 0.2)


def test_halves_of_a_batch_are_mixed_as_the_whole() -> None:
    """Two ranks with two and four rows get the same mixed images as one rank with all six."""
    for mixing in ("mixup", "cutmix"):
        whole = mix(X, LABELS, mixing, 1.0, 1, 2)
        parts = [mix(X[rows], LABELS[rows], mixing, 1.0, 1, 2) for rows in (slice(0, 2), slice(2, 6))]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)


def test_loss_is_the_cross_entropy_with_the_mixed_smooth_labels() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    for smoothing in (0.0, 0.1):
        targets = 0.7 * np.eye(4)[LABELS] + 0.3 * np.eye(4)[LABELS[PARTNER]]
        targets = (1 - smoothing) * targets + smoothing / 4
        expected = np.mean(-(targets * logits.log_softmax(1).numpy()).sum(1))
        found = mixed_cross_entropy(logits, Mixed(X, LABELS, LABELS[PARTNER], 0.7), smoothing)
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_gradient() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    mixed = Mixed(X, LABELS, LABELS[PARTNER], 0.7)
    assert torch.autograd.gradcheck(lambda z: mixed_cross_entropy(z, mixed, 0.1), logits)


def test_loss_does_not_depend_on_order_names_an_offset_or_which_image_is_the_partner() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(rows: list[int], names: list[int], own: int = 0, offset: float = 0.0) -> float:
        renamed = torch.argsort(torch.tensor(names))
        labels = [renamed[LABELS[rows]], renamed[LABELS[PARTNER][rows]]]
        mixed = Mixed(X[rows], labels[own], labels[1 - own], (0.7, 0.3)[own])
        return float(mixed_cross_entropy(logits[rows][:, names] + offset, mixed, 0.1))

    rows, names = list(range(6)), list(range(4))
    expected = loss(rows, names)
    assert loss([4, 1, 0, 5, 2, 3], names) == pytest.approx(expected, rel=1e-12)
    assert loss(rows, [2, 0, 3, 1]) == pytest.approx(expected, rel=1e-12)
    assert loss(rows, names, own=1) == pytest.approx(expected, rel=1e-12)
    assert loss(rows, names, offset=5.0) == pytest.approx(expected, rel=1e-12)
    assert (loss(rows[:3], names) + loss(rows[3:], names)) / 2 == pytest.approx(expected, rel=1e-12)


def test_no_mixing_changes_nothing_and_an_odd_batch_is_refused() -> None:
    plain = mix(X[:3], LABELS[:3], "none", 1.0, 0, 0)
    assert plain.x is not None
    assert torch.equal(plain.x, X[:3])
    assert plain.share == 1.0
    with pytest.raises(UserError, match="even number of images on every process, found 3"):
        mix(X[:3], LABELS[:3], "mixup", 1.0, 0, 0)
