"""Temporal ensembling: a prediction agrees with the average of the image's own earlier predictions.

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
    """Return the mean prediction of each row, free of the start from 0: Z / (1 - a^t).

    Args:
        ensemble: float32 [M, C], from `accumulate`.
        visits: int64 [M], t, predictions in it; a row with none has 0 for every class.
        momentum: a.

    Returns:
        float32 [M, C]; the rows with a prediction sum to 1.
    """
    weight = 1.0 - momentum ** visits.to(ensemble.dtype)
    return torch.where(visits[:, None] > 0, ensemble / weight.clamp_min(1e-9)[:, None], 0.0)


def ensemble_consistency(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Return the squared difference of class probabilities, a mean over classes and over all rows.

    Args:
        logits: [M, C].
        target: [M, C], probabilities; no gradient flows back.
        known: bool [M]; other rows have no target yet and count as 0.
    """
    difference = at_least_float32(logits).softmax(1) - target.detach()
    return (difference.square().mean(1) * known).mean()
