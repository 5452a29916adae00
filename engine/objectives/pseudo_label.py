"""Pseudo-labels: the network's own confident guesses as labels, with a weight that grows.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", equations 15 and 16; Sohn et al. 2020 (FixMatch) for the threshold; the INF473V report, section
3.2, for the growing threshold.
"""

from __future__ import annotations

from torch import Tensor

from engine.objectives.fixmatch import FixMatchTerms, fixmatch_loss


def pseudo_label_loss(
    logits_labeled: Tensor,
    labels: Tensor,
    logits_unlabeled: Tensor,
    threshold: float,
    weight: float,
    class_weights: Tensor | None = None,
) -> FixMatchTerms:
    """Compute the loss with pseudo-labels: that of FixMatch with one view as both weak and strong view.

    Args:
        logits_labeled: [B, C].
        labels: int64 [B], or shares of the classes, see `label_loss`.
        logits_unlabeled: [M, C]; the guess is their argmax, through which no gradient flows.
        threshold: least probability of a guess; 0 takes every guess, as Lee did.
        weight: alpha(t), see `label_weight`.
        class_weights: weight of each class in the supervised loss, see `label_loss`.
    """
    unlabeled = logits_unlabeled
    return fixmatch_loss(logits_labeled, labels, unlabeled, unlabeled, threshold, weight, class_weights)


def label_weight(epoch: float, first_epoch: float, last_epoch: float, peak: float) -> float:
    """Return alpha(t): 0 until `first_epoch`, then linear up to `peak` at `last_epoch`, then constant.

    Source: Lee 2013, equation 16.
    """
    if epoch < first_epoch:
        return 0.0
    if epoch >= last_epoch:
        return peak
    return peak * (epoch - first_epoch) / (last_epoch - first_epoch)


def growing_threshold(epoch: int, start: float, growth: float, limit: float) -> float:
    """Return start + growth * epoch, at most `limit`; with growth 0, return `start`."""
    return min(start + growth * epoch, limit) if growth > 0.0 else start
