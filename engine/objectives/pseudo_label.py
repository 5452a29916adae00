"""Pseudo-labels: the network's own confident guesses as labels, with a weight that grows.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", equations 15 and 16; the threshold is that of Sohn et al. 2020 (FixMatch), the growing threshold
that of the INF473V report, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.objectives.cross_entropy import label_loss
from engine.objectives.fixmatch import confident_guesses, masked_cross_entropy


@dataclass(frozen=True)
class PseudoLabelTerms:
    """The loss and its parts, scalars.

    Attributes:
        loss: supervised + weight * unsupervised.
        supervised: mean cross-entropy of the labelled rows.
        unsupervised: cross-entropy of the confident rows with their own guess, divided by all rows.
        mask_rate: share of the unlabelled rows that were confident enough, detached.
    """

    loss: Tensor
    supervised: Tensor
    unsupervised: Tensor
    mask_rate: Tensor


def pseudo_label_loss(
    logits_labeled: Tensor,
    labels: Tensor,
    logits_unlabeled: Tensor,
    threshold: float,
    weight: float,
    class_weights: Tensor | None = None,
) -> PseudoLabelTerms:
    """Compute the loss of pseudo-labels that are the guesses of the same logits.

    Args:
        logits_labeled: [B, C].
        labels: int64 [B], or shares of the classes, see `label_loss`.
        logits_unlabeled: [M, C]; the guess is their argmax, through which no gradient flows.
        threshold: least probability of a guess; 0 takes every guess, as Lee did.
        weight: alpha(t), see `label_weight`.
        class_weights: of the supervised loss, see `label_loss`.
    """
    supervised = label_loss(logits_labeled, labels, class_weights)
    guess, mask = confident_guesses(logits_unlabeled, threshold)
    unsupervised = masked_cross_entropy(logits_unlabeled, guess, mask)
    mask_rate = mask.to(torch.float32).mean()
    return PseudoLabelTerms(supervised + weight * unsupervised, supervised, unsupervised, mask_rate)


def label_weight(epoch: float, first_epoch: float, last_epoch: float, peak: float) -> float:
    """Return alpha(t): 0 until `first_epoch`, then linear up to `peak` at `last_epoch`, constant after.

    Source: Lee 2013, equation 16.
    """
    if epoch < first_epoch:
        return 0.0
    if epoch >= last_epoch:
        return peak
    return peak * (epoch - first_epoch) / (last_epoch - first_epoch)


def growing_threshold(epoch: int, start: float, growth: float, limit: float) -> float:
    """Return start + growth * epoch, at most `limit`; growth 0 is a fixed threshold."""
    return min(start + growth * epoch, limit) if growth > 0.0 else start
