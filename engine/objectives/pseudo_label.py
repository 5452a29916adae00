"""Pseudo-labels: the weight and the threshold of a loss in which confident guesses serve as labels.

The loss is that of FixMatch, with one view as both the weak and the strong one; a threshold of 0 takes every
guess, as Lee did.

Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", equations 15 and 16; Sohn et al. 2020 (FixMatch) for the threshold; the INF473V report, section
3.2, for the growing threshold.
"""

from __future__ import annotations


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
