"""Averages of predictions, and the consistency loss towards them, equal plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.objectives.temporal_ensembling import accumulate, ensemble_consistency, targets


def predictions(times: int) -> torch.Tensor:
    """Draw class probabilities of four rows for `times` epochs, float64 [times, 4, 3]."""
    drawn = torch.randn(times, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return drawn.softmax(2)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_target_is_the_weighted_mean_of_all_predictions_so_far(momentum: float) -> None:
    """The latest prediction has weight 1, the one before it `momentum`, and so on; the initial 0 has none."""
    seen = predictions(5)
    ensemble, visits = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    for number, z in enumerate(seen, start=1):
        ensemble, visits = accumulate(ensemble, z, momentum), visits + 1
        weights = momentum ** np.arange(number - 1, -1, -1.0)
        expected = np.average(seen[:number].numpy(), axis=0, weights=weights)
        np.testing.assert_allclose(targets(ensemble, visits, momentum).numpy(), expected, rtol=1e-12)


def test_rows_may_have_been_seen_unequally_often() -> None:
    seen, visits = predictions(2), torch.tensor([0, 1, 2, 2])
    first = torch.where(visits[:, None] > 0, accumulate(torch.zeros(4, 3).double(), seen[0], 0.6), 0.0)
    both = torch.where(visits[:, None] > 1, accumulate(first, seen[1], 0.6), first)
    found = targets(both, visits, 0.6)
    torch.testing.assert_close(found[0], torch.zeros(3).double())
    torch.testing.assert_close(found[1], seen[0, 1])
    torch.testing.assert_close(found[2:], (0.6 * seen[0, 2:] + seen[1, 2:]) / 1.6)


def test_consistency_is_a_mean_over_all_rows_of_which_the_known_count() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    target, known = predictions(1)[0].requires_grad_(), torch.tensor([True, False, True, True])
    loss = ensemble_consistency(logits, target, known)
    rows = ((logits.softmax(1) - target) ** 2).mean(1)
    assert float(loss.detach()) == pytest.approx(float((rows[0] + rows[2] + rows[3]).detach()) / 4, rel=1e-12)
    loss.backward()
    assert target.grad is None
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).gt(0).tolist() == known.tolist()
    agreed = predictions(1)[0].log()
    assert float(ensemble_consistency(agreed, predictions(1)[0], known)) == pytest.approx(0.0, abs=1e-12)
