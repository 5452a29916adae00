"""Signs of collapse: the spread of representations, and the number of directions that they use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_STD, LEAST_RANK = 0.01, 1.5
"""Features count as collapsed if `feature_std` or `effective_rank` is below these; both are far larger even
for untrained networks."""
_MOST_ROWS = 8192  # used for the singular values; RankMe's authors found 25,600 rows more than enough
_EPSILON = 1e-7


def feature_std(h: Tensor) -> float:
    """Return the mean standard deviation of L2-normalised features, times sqrt(D).

    Args:
        h: float32 [N, D], at least 2 rows.

    Returns:
        About 1 if the directions of the images are spread evenly, 0 if all images have the same direction.

    Source: Chen and He 2021, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566), section
        4.1, whose figure 2 shows the standard deviation beside 1 / sqrt(D).
    """
    return float(F.normalize(h, dim=1).std(0).mean() * h.shape[1] ** 0.5)


def effective_rank(h: Tensor) -> float:
    """Return the exponential of the entropy of the singular values, each divided by their sum.

    Args:
        h: float32 [N, D], not centred. Of more than 8,192 rows, 8,192 evenly spaced ones are used, so that
            all classes occur even if the rows are sorted by class.

    Returns:
        A value from 1 (a single direction) to min(N, D); 0 if all features are 0.

    Source: Garrido et al. 2023, "RankMe" (arXiv 2210.02885), equation 1.
    """
    values = torch.linalg.svdvals(h if len(h) <= _MOST_ROWS else h[spaced(len(h), _MOST_ROWS)])
    if float(values.sum()) == 0.0:
        return 0.0
    shares = values / values.sum() + _EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


def spaced(count: int, most: int) -> Tensor:
    """Return up to `most` evenly spaced positions in [0, count), int64."""
    return torch.linspace(0, max(0, count - 1), min(count, most), dtype=torch.float64).round().long()


def describe_collapse(std: float, rank: float, num_features: int) -> str:
    """Return a warning if the features have collapsed, else an empty text."""
    if std >= LEAST_STD and rank >= LEAST_RANK:
        return ""
    return (
        f"warning: the features have collapsed, standard deviation {std:.2g} (1 for an even spread), "
        f"effective rank {rank:.2g} of {num_features}; lower the learning rate, or increase the weight of "
        "the loss term that keeps features apart"
    )
