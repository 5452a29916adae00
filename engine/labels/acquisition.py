"""Choosing images to label: those a network is least sure of, those that cover the features, or random ones.

Sources: Zhou, Wan, Li 2021, section 3.4: k-means by cosine similarity on the pre-trained embedding, then the
smallest confidence margins in each cluster. Sener and Savarese 2018, "Active Learning for Convolutional
Neural Networks: A Core-Set Approach" (arXiv 1708.00489), algorithm 1: greedy k-centre.
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
    """Return each row's highest probability minus its second highest, float32 [N].

    Args:
        probabilities: float32 [N, C], C of at least 2.

    Raises:
        UserError: a probability is NaN, or there are fewer than two classes.
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
    """Return the positions of the `count` smallest margins, increasing; all positions if there are fewer.

    Of equal margins, those at the first positions are taken.
    """
    if count >= len(margin):
        return np.arange(len(margin))
    limit = np.partition(margin, count - 1)[count - 1] if count > 0 else -np.inf
    below = np.flatnonzero(margin < limit)
    at = np.flatnonzero(margin == limit)[: count - len(below)]
    return np.sort(np.concatenate([below, at]))


def smallest_per_cluster(margin: Floats, assignment: Positions, num_clusters: int, count: int) -> Positions:
    """Return the positions of the `count` smallest margins of each cluster, increasing.

    A cluster with fewer images than `count` gives all of them, and no other cluster makes up for it.

    Args:
        margin: float32 [N].
        assignment: int64 [N], cluster of each image, in [0, num_clusters).
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
    """Choose images that cover the features, and return their positions in the order of choice.

    Each choice is the image farthest from all known and chosen images. The largest distance from any image
    to the nearest known or chosen one is then at most twice the least possible. Distances are Euclidean.

    Args:
        features: float32 [N, D], of the images to choose from; or float16, which may be memory-mapped. More
            than 16,384 rows of float16 are read again for every chosen or known image.
        count: number of images to choose; all N if there are fewer.
        seed: seed of the first choice, which is random if no image is known.
        known: float32 or float16 [M, D], features of images that already have a label; None if there are
            none.

    Returns:
        int64 [min(count, N)]; of equal distances, the first position is taken.

    Raises:
        UserError: a feature that is NaN or infinite.

    Source: Sener and Savarese 2018, algorithm 1.
    """
    size = len(features) if features.dtype == np.float32 else _ROWS_PER_PART
    parts = [slice(first, first + size) for first in range(0, len(features), size)]
    for part in parts:
        check_finite(features[part])
    # The mean is subtracted, so that differences of squared lengths lose few digits.
    mean = (sum(features[part].sum(0, dtype=np.float64) for part in parts) / len(features)).astype(np.float32)
    whole = features - mean if len(parts) == 1 else None  # features on disk are read again for each centre

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
        nearest[first] = np.finfo(np.float32).max  # so that the random first image counts as the farthest
        nearest[np.arange(len(features)) != first] = np.finfo(np.float32).max / 2
    chosen = np.empty(min(count, len(features)), np.int64)
    for place in range(len(chosen)):
        chosen[place] = nearest.argmax()
        approach(features[chosen[place]] - mean)
        nearest[chosen[place]] = -np.inf
    return chosen
