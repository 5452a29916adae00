"""Cross-entropy for pretext tasks, and for labels, optionally with a weight for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.objectives.precision import at_least_float32

EFFECTIVE_BETA = 0.999


@dataclass(frozen=True)
class PretextTerms:
    """The loss and the accuracy, scalars averaged over the rank's rows.

    Attributes:
        loss: cross-entropy.
        top1: share of rows whose target has the highest logit, without gradient.
    """

    loss: Tensor
    top1: Tensor


def pretext_loss(logits_BC: Tensor, target: Tensor) -> PretextTerms:
    """Compute the cross-entropy, averaged over the rank's rows.

    Args:
        logits_BC: [B, C], any float dtype; computed in float32 or wider.
        target: int64 [B], in [0, C).

    Raises:
        ValueError: shapes do not match.
    """
    if logits_BC.ndim != 2 or target.shape != logits_BC.shape[:1]:
        raise ValueError(
            f"pretext: expected logits [B, C] and targets [B], got {list(logits_BC.shape)} and "
            f"{list(target.shape)}"
        )
    wide = at_least_float32(logits_BC)
    top1 = (wide.detach().argmax(1) == target).float().mean()
    return PretextTerms(F.cross_entropy(wide, target), top1)


def class_weights(counts: Tensor, effective: bool = False) -> Tensor:
    """Return class weights that raise the share of rare classes in a loss.

    Args:
        counts: int64 [C], labels of each class, not all 0.
        effective: make weights inverse to the effective number of n images, (1 - b^n) / (1 - b) with
            b = 0.999, instead of inverse to n.

    Returns:
        float32 [C], 0 for a class without labels; the mean over all labels is 1.

    Source: Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples" (arXiv 1901.05555),
        equation 6, for the effective number; its authors try b = 0.9, 0.99, 0.999 and 0.9999.
    """
    n = counts.double()
    number = (1.0 - EFFECTIVE_BETA**n) / (1.0 - EFFECTIVE_BETA) if effective else n
    weights = torch.where(n > 0, 1.0 / number.clamp_min(1e-9), 0.0)
    return (weights * n.sum() / (weights * n).sum()).float()


def label_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy, weighted by class, averaged over the rank's rows.

    The weights are not normalised within a batch, so that the mean over ranks or parts of a batch is the mean
    over the whole batch.

    Args:
        logits: [B, C], any float dtype; computed in float32 or wider.
        labels: int64 [B]; or, for mixed images, float [B, C], the share of each class.
        weights: [C], from `class_weights`; by default all rows count the same.
        label_smoothing: share of a label that is spread evenly over all classes.
    """
    wide = at_least_float32(logits)
    if labels.is_floating_point():
        log_p = wide.log_softmax(1)
        per_class = -(1.0 - label_smoothing) * log_p - label_smoothing * log_p.mean(1, keepdim=True)
        return ((labels if weights is None else labels * weights) * per_class).sum(1).mean()
    if weights is None:
        return F.cross_entropy(wide, labels, label_smoothing=label_smoothing)
    per_row = F.cross_entropy(wide, labels, reduction="none", label_smoothing=label_smoothing)
    return (per_row * weights[labels]).mean()
