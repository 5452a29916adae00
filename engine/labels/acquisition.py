"""Which images to have labelled: those of which a network is least sure, or those far from all others.

Sources: Zhou, Wan, Li 2021, section 3.4: k-means by cosine similarity on the pre-trained embedding, then the
smallest margins of confidence in each cluster. Sener and Savarese 2018, "Active Learning for Convolutional
Neural Networks: A Core-Set Approach" (arXiv 1708.00489), algorithm 1: k-centre, greedy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.labels.clusters import check_finite
from loaders.common.errors import UserError

Positions = NDArray[np.int64]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
_ROWS_PER_PART = 16_384


def margins(probabilities: Floats) -> Floats:
    """Return the margin of each row between the most probable class and the second, float32 [N].

    Args:
        probabilities: float32 [N, C], C of at least 2.

    Raises:
        UserError: a probability that is NaN, or one class alone, which has no second.
    """
    if np.isnan(probabilities).any():
        row = int(np.flatnonzero(np.isnan(probabilities).any(1))[0])
        raise UserError(f"margins: image {row} has a NaN probability; take an earlier checkpoint")
    if probabilities.shape[1] < 2:
        raise UserError(
            "margins: expected a classifier of two classes or more, found one class; give another --run, or "
            "--strategy random or k_centre with --init in place of --run"
        )
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    ahead: Floats = two[:, 1] - two[:, 0]
    return ahead


def smallest(margin: Floats, count: int) -> Positions:
    """Return the positions of the `count` smallest margins in increasing order, or all if there are fewer.

    Among equal margins the first positions are taken.
    """
    if count >= len(margin):
        return np.arange(len(margin))
    limit = np.partition(margin, count - 1)[count - 1] if count > 0 else -np.inf
    below = np.flatnonzero(margin < limit)
    at = np.flatnonzero(margin == limit)[: count - len(below)]
    return np.sort(np.concatenate([below, at]))


def smallest_per_cluster(margin: Floats, assignment: Positions, num_clusters: int, count: int) -> Positions:
    """Return the positions of the `count` smallest margins of each cluster, increasing.

    A cluster with fewer images gives all of them; other clusters give no more for that.

    Args:
        margin: float32 [N].
        assignment: int64 [N], cluster of each image, in [0, num_clusters).
        num_clusters: number of clusters.
        count: images per cluster.
    """
    chosen = []
    for cluster in range(num_clusters):
        members = np.flatnonzero(assignment == cluster)
        chosen.append(members[smallest(margin[members], count)])
    return np.sort(np.concatenate(chosen))


def random_choice(num_images: int, count: int, seed: int) -> Positions:
    """Return `count` positions drawn uniformly without replacement, increasing; all if there are fewer."""
    generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
    return np.sort(generator.permutation(num_images)[:count]).astype(np.int64)


def k_centre(
    features: Floats | Halves, count: int, seed: int, known: Floats | Halves | None = None
) -> Positions:
    """Return the positions that cover the features best, in the order in which they were chosen.

    Each position is the one farthest from all known and chosen images (farthest first). The largest distance
    from any image to the nearest chosen one is then at most twice the least possible. Distances are
    Euclidean.

    Args:
        features: float32 [N, D], of the images to choose from; or float16, which may be memory-mapped and is
            read once for every chosen or known image.
        count: how many to choose; all if there are fewer.
        seed: seed of the first choice, where no image is known.
        known: float32 or float16 [M, D], features of images that have a label already; None or M = 0 for
            none.

    Returns:
        int64 [min(count, N)]; among equal distances the first position is taken.

    Raises:
        UserError: a feature that is NaN or infinite.

    Source: Sener and Savarese 2018, algorithm 1.
    """
    size = len(features) if features.dtype == np.float32 else _ROWS_PER_PART
    parts = [slice(first, first + size) for first in range(0, len(features), size)]
    for part in parts:
        check_finite(features[part])
    # Centred on their mean, so that differences of squared lengths lose few digits.
    mean = (sum(features[part].sum(0, dtype=np.float64) for part in parts) / len(features)).astype(np.float32)
    whole = features - mean if len(parts) == 1 else None  # features on the disk are read anew for each centre

    def points(part: slice) -> Floats:
        found: Floats = features[part] - mean if whole is None else whole
        return found

    squares = np.concatenate([np.einsum("nd,nd->n", p, p) for p in map(points, parts)])
    nearest = np.full(len(features), np.inf, np.float32)

    def approach(centre: Floats) -> None:
        for part in parts:
            distance = squares[part] - 2 * (points(part) @ centre) + centre @ centre
            np.minimum(nearest[part], distance, out=nearest[part])

    if known is not None and len(known):
        check_finite(known)
        for centre in known:
            approach(centre - mean)
    else:
        first = int(random_choice(len(features), 1, seed)[0])
        nearest[first] = np.finfo(np.float32).max  # the farthest point
        nearest[np.arange(len(features)) != first] = np.finfo(np.float32).max / 2
    chosen = np.empty(min(count, len(features)), np.int64)
    for place in range(len(chosen)):
        chosen[place] = nearest.argmax()
        approach(features[chosen[place]] - mean)
        nearest[chosen[place]] = -np.inf
    return chosen
