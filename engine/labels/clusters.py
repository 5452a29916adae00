"""Clusters of features: PCA whitening and k-means by faiss, and the repair of empty clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
_SAMPLE_NUMBERS = 2**27  # largest sample of float16 features to find centres on: 512 MiB as float32
_ROWS_PER_PART = 16_384
_ALL = 10_000_000  # points per cluster on which faiss finds the centres at most: in practice all of them


@dataclass(frozen=True)
class Clusters:
    """A partition of N points into K clusters, none of them empty.

    Attributes:
        centres: float32 [K, D].
        assignment: int64 [N], in [0, K).
        distances: float32 [N], squared Euclidean distance of each point to its centre.
        num_repaired: number of clusters that `repair_empty` filled.
    """

    centres: Floats
    assignment: NDArray[np.int64]
    distances: Floats
    num_repaired: int


def normalise(features: Floats) -> Floats:
    """Scale every row of features [N, D] to length 1; a row of zeros stays zero."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Floats = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def check_finite(features: Floats | Halves) -> None:
    """Refuse features between which distances are not defined.

    Raises:
        UserError: a feature is NaN or infinite; the message gives the position of the first such image.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise UserError(
            f"clusters: expected finite features, found NaN or infinity in {len(bad):,} of {len(features):,} "
            f"images, first in image {bad[0]}; the network that made them is broken, take an earlier "
            "checkpoint"
        )


def whiten(features: Floats, num_components: int) -> Floats:
    """Whiten features by PCA, keeping the first components, and scale every row to length 1.

    Args:
        features: float32 [N, D].
        num_components: number of components to keep; no more than min(N, D) exist.

    Returns:
        float32 [N, min(num_components, N, D)].

    Raises:
        UserError: a feature that is NaN or infinite.

    Source: Caron et al. 2018 (DeepCluster), section 3.3: PCA to 256 dimensions, whitened, l2-normalised.
    """
    import faiss

    check_finite(features)
    num_rows, size = features.shape
    pca = faiss.PCAMatrix(size, min(num_components, num_rows, size))
    pca.train(np.ascontiguousarray(features, np.float32))
    # The features of an untrained network are linearly dependent, so some eigenvalues are zero up to
    # rounding, and possibly negative. Adding epsilon keeps these components near zero instead of NaN.
    pca.epsilon = 1e-5 * float(faiss.vector_to_array(pca.eigenvalues).max())
    pca.eigen_power = -0.5
    pca.prepare_Ab()
    return normalise(pca.apply(np.ascontiguousarray(features, np.float32)))


def kmeans(
    features: Floats | Halves,
    num_clusters: int,
    seed: int,
    num_iterations: int = 20,
    spherical: bool = False,
) -> Clusters:
    """Cluster points by Euclidean distance or cosine similarity; deterministic.

    Args:
        features: float32 [N, D]; or float16, which may be memory-mapped. Centres of float16 features are
            found on a sample of about 2**27 numbers at most (but K points at least), and points are then
            assigned in parts. All features are in memory at once only if an empty cluster has to be repaired.
        num_clusters: K, at most N.
        seed: seed of the first centres, and of the sample.
        num_iterations: iterations of Lloyd's algorithm; 20 in DeepCluster.
        spherical: cluster by cosine similarity: rows are scaled to length 1, and so is every centre after
            each iteration (Dhillon, Modha 2001). DeepCluster uses plain k-means on rows of length 1, whose
            centres are shorter than 1, and shortest in wide clusters.

    Returns:
        The clusters, none of them empty; no other centre is nearer or more similar to a point than its own.

    Raises:
        UserError: `num_clusters` is out of range, or a feature is NaN or infinite.
    """
    num_points, size = features.shape
    if not 1 <= num_clusters <= num_points:
        raise UserError(
            f"k-means: expected 1 to {num_points} clusters for {num_points} images, found {num_clusters}; "
            "ask for fewer"
        )
    import faiss

    solver: Any = faiss.Kmeans(
        size,
        num_clusters,
        niter=num_iterations,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=_ALL,
        spherical=spherical,
    )
    if features.dtype != np.float32:
        halves: Halves = features.astype(np.float16, copy=False)
        return _kmeans_of_parts(halves, solver, seed, spherical)
    points = _points(features, spherical)
    solver.train(points)
    return repair_empty(points, solver.centroids, *_nearest(solver, points, spherical))


def _points(features: Floats | Halves, spherical: bool) -> Floats:
    """Return checked features as float32, as rows of length 1 for spherical k-means."""
    found: Floats = features.astype(np.float32, copy=False)
    check_finite(found)
    return np.ascontiguousarray(normalise(found) if spherical else found)


def _nearest(solver: Any, points: Floats, spherical: bool) -> tuple[NDArray[np.int64], Floats]:
    """Return the nearest centre of each point, and the squared distance to it."""
    found, nearest = solver.index.search(points, 1)
    # The index of spherical k-means returns inner products, which order unit vectors as distances do.
    squares = np.square(points).sum(1) + 1.0 - 2.0 * found[:, 0] if spherical else found[:, 0]
    return nearest[:, 0].astype(np.int64), np.maximum(squares, 0.0)


def _kmeans_of_parts(features: Halves, solver: Any, seed: int, spherical: bool) -> Clusters:
    """Find centres on a sample that fits into memory, then assign all points in parts."""
    num_points, size = features.shape
    most = max(solver.k, _SAMPLE_NUMBERS // size)
    generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
    chosen = np.sort(generator.permutation(num_points)[:most])
    solver.train(_points(features[chosen], spherical))
    assignment, distances = np.empty(num_points, np.int64), np.empty(num_points, np.float32)
    for first in range(0, num_points, _ROWS_PER_PART):
        part = slice(first, first + _ROWS_PER_PART)
        assignment[part], distances[part] = _nearest(solver, _points(features[part], spherical), spherical)
    if np.bincount(assignment, minlength=solver.k).min() > 0:
        return Clusters(solver.centroids, assignment, distances, 0)
    return repair_empty(_points(features, spherical), solver.centroids, assignment, distances)


def repair_empty(
    points: Floats, centres: Floats, assignment: NDArray[np.int64], distances: Floats
) -> Clusters:
    """Give every empty cluster some points of the other clusters.

    In the largest cluster, the point farthest from the centre becomes the centre of the empty cluster, which
    then takes every point that is nearer to this centre than to its present one. DeepCluster instead perturbs
    the centre of a random cluster, which may leave one of the two clusters empty.

    Args:
        points: float32 [N, D], N of at least K.
        centres: float32 [K, D].
        assignment: int64 [N], the nearest centre of each point.
        distances: float32 [N], squared distance of each point to its centre.
    """
    centres, assignment, distances = centres.copy(), assignment.copy(), distances.copy()
    num_clusters = len(centres)
    repaired: set[int] = set()
    while (sizes := np.bincount(assignment, minlength=num_clusters)).min() == 0:
        cluster, largest = int(sizes.argmin()), int(sizes.argmax())
        members = np.flatnonzero(assignment == largest)
        farthest = members[distances[members].argmax()]
        centres[cluster] = points[farthest]
        # By the triangle inequality, only a cluster whose centre is less than twice its radius from the new
        # centre can have points that are nearer to the new centre than to their own. Few clusters qualify.
        radius = np.zeros(num_clusters, np.float32)
        np.maximum.at(radius, assignment, distances)
        reached = np.square(centres - centres[cluster]).sum(1) < 4.0 * radius
        asked = np.flatnonzero(reached[assignment])
        to_new = np.square(points[asked] - centres[cluster]).sum(1)
        nearer = to_new < distances[asked]
        assignment[asked[nearer]], distances[asked[nearer]] = cluster, to_new[nearer]
        assignment[farthest], distances[farthest] = cluster, 0.0
        repaired.add(cluster)
    return Clusters(centres, assignment, distances, len(repaired))
