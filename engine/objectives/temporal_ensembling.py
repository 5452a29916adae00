"""Temporal ensembling: the prediction for an image agrees with the average of its earlier predictions.

Source: Laine and Aila 2017, "Temporal Ensembling for Semi-Supervised Learning" (arXiv 1610.02242),
algorithm 2.

Shapes: M rows of this rank, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.objectives.precision import at_least_float32


def accumulate(ensemble: Tensor, predictions: Tensor, momentum: float) -> Tensor:
    """Return the ensemble after one more prediction of each row: Z <- a Z + (1 - a) z.

    Args:
        ensemble: float32 [M, C], 0 before the first prediction.
        predictions: class probabilities [M, C].
        momentum: a, in [0, 1).
    """
    return momentum * ensemble + (1.0 - momentum) * predictions


def targets(ensemble: Tensor, visits: Tensor, momentum: float) -> Tensor:
    """Return the average prediction of each row, corrected for the start from 0: Z / (1 - a^t).

    Args:
        ensemble: float32 [M, C], Z, from `accumulate`.
        visits: int64 [M], t, the number of predictions that the ensemble has of each row.
        momentum: a, the one given to `accumulate`.

    Returns:
        float32 [M, C]; rows sum to 1, or are 0 without a prediction.
    """
    weight = 1.0 - momentum ** visits.to(ensemble.dtype)
    return torch.where(visits[:, None] > 0, ensemble / weight.clamp_min(1e-9)[:, None], 0.0)


def ensemble_consistency(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return the squared difference of class probabilities, averaged over classes and all rows.

    Args:
        logits: [M, C].
        target: [M, C], probabilities; no gradient flows back.
        known: bool [M], False for rows that have no target yet; their difference counts as 0.
    """
    difference = at_least_float32(logits).softmax(1) - target.detach()
    return (difference.square().mean(1) * known).mean()
