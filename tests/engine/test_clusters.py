"""k-means, whitening and the repair of empty clusters."""

from __future__ import annotations

import numpy as np
import pytest

from engine.clusters import kmeans, normalise, repair_empty, whiten
from loaders.errors import UserError


def blobs(num_clusters: int = 5, num_each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_clusters, 4)) * 20
    labels = np.repeat(np.arange(num_clusters), num_each)
    return (centres[labels] + rng.normal(size=(len(labels), 4))).astype(np.float32), labels


def test_finds_separate_blobs() -> None:
    points, labels = blobs()
    # Lloyd's algorithm ends in a local optimum; the best of a few starts is the global one here.
    found = min((kmeans(points, 5, seed) for seed in range(6)), key=lambda c: float(c.distances.sum()))
    pairs = set(zip(labels.tolist(), found.assignment.tolist(), strict=True))
    assert len(pairs) == 5, "one cluster per blob"
    expected = np.square(points - found.centres[found.assignment]).sum(1)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-2, atol=1e-2)
    assert found.num_repaired == 0


def test_features_that_depend_on_each_other_are_whitened() -> None:
    # Three directions in ten dimensions: seven variances are zero but for rounding, some below zero.
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(2000, 3)) * [10, 1, 0.5]) @ rng.normal(size=(3, 10))
    whitened = whiten(features.astype(np.float32), 10)
    assert np.isfinite(whitened).all()
    shares = np.square(whitened).mean(0)
    np.testing.assert_allclose(shares[:3], 1 / 3, atol=0.02)
    assert shares[3:].max() < 1e-6


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 6)).astype(np.float32)
    first, again, other = (kmeans(points, 12, seed).assignment for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("equal_points", [False, True])
def test_no_cluster_stays_empty(equal_points: bool) -> None:
    rng = np.random.default_rng(0)
    points = (np.ones((9, 2)) if equal_points else rng.normal(size=(9, 2))).astype(np.float32)
    centres = np.full((4, 2), 50, np.float32)
    centres[1] = points.mean(0)
    distances = np.square(points - centres[1]).sum(1)
    found = repair_empty(points, centres, np.ones(9, np.int64), distances)
    assert np.bincount(found.assignment, minlength=4).min() >= 1
    assert found.num_repaired == 3
    np.testing.assert_allclose(
        found.distances, np.square(points - found.centres[found.assignment]).sum(1), rtol=1e-5
    )
    assert found.distances.sum() <= distances.sum()
    assert (centres == 50).sum() == 6, "the input is left alone"


def test_as_many_clusters_as_points_but_not_more() -> None:
    points, _ = blobs(2, 4)
    assert np.bincount(kmeans(points, 8, seed=0).assignment, minlength=8).tolist() == [1] * 8
    with pytest.raises(UserError, match="1 to 8 clusters for 8 images, found 9"):
        kmeans(points, 9, seed=0)


def test_whitening_decorrelates_and_normalises() -> None:
    rng = np.random.default_rng(0)
    mixed = (rng.normal(size=(4000, 3)) * [1, 5, 20] @ rng.normal(size=(3, 3)) + 7).astype(np.float32)
    white = whiten(mixed, 3)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.cov(white.T), np.eye(3) / 3, atol=0.03)
    assert whiten(mixed, 2).shape == (4000, 2)
    assert whiten(mixed[:2], 256).shape == (2, 2)


def test_rows_of_zeros_stay() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(normalise(rows), [[0.6, 0.8], [0.0, 0.0]])
