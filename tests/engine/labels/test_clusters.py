"""k-means, whitening and the repair of empty clusters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from engine.labels.clusters import kmeans, normalise, repair_empty, whiten
from loaders.common.errors import UserError


def blobs(num_clusters: int = 5, num_each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_clusters, 4)) * 20
    labels = np.repeat(np.arange(num_clusters), num_each)
    return (centres[labels] + rng.normal(size=(len(labels), 4))).astype(np.float32), labels


def test_finds_separate_blobs() -> None:
    points, labels = blobs()
    # Lloyd's algorithm ends in a local optimum; here the best of a few starts is the global optimum.
    found = min((kmeans(points, 5, seed) for seed in range(6)), key=lambda c: float(c.distances.sum()))
    pairs = set(zip(labels.tolist(), found.assignment.tolist(), strict=True))
    assert len(pairs) == 5, "one cluster per blob"
    expected = np.square(points - found.centres[found.assignment]).sum(1)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-2, atol=1e-2)
    assert found.num_repaired == 0


def best_partition(points: np.ndarray, num_clusters: int) -> float:
    """Try every assignment; return the smallest sum of squared distances from the cluster means."""
    sums = []
    for places in product(range(num_clusters), repeat=len(points)):
        assignment = np.array(places)
        members = [points[assignment == cluster] for cluster in range(num_clusters)]
        sums.append(sum(float(np.square(m - m.mean(0)).sum()) for m in members if len(m)))
    return min(sums)


GRID = np.array(list(product((0.0, 1.0, 2.0), (0.0, 1.0))))


@pytest.mark.parametrize(
    "points",
    [
        np.random.default_rng(1).normal(size=(8, 2)),
        GRID,  # many points are equally near to two means
        np.repeat(GRID[:4], 2, 0),  # each point twice
        np.repeat(GRID[:2], 4, 0),  # fewer different points than clusters
    ],
    ids=["random", "ties", "twice", "few"],
)
def test_equals_the_best_of_all_partitions(points: np.ndarray) -> None:
    points = points.astype(np.float32)
    # Lloyd's algorithm ends in a local optimum: no start beats the global optimum, and the best reaches it.
    found = [kmeans(points, 3, seed) for seed in range(12)]
    sums = [float(np.square(points - each.centres[each.assignment]).sum()) for each in found]
    assert min(sums) == pytest.approx(best_partition(points, 3), rel=1e-4, abs=1e-6)
    for each in found:
        to_all = np.square(points[:, None] - each.centres[None]).sum(2)
        own = to_all[np.arange(len(points)), each.assignment]
        np.testing.assert_allclose(own, to_all.min(1), rtol=1e-4, atol=1e-5)
        assert np.bincount(each.assignment, minlength=3).min() >= 1, "none is empty, even if centres coincide"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_by_cosine_every_point_is_in_its_most_similar_cluster(spread: float, seed: int) -> None:
    """Centres must be normalised, because means of wide clusters are shorter than those of narrow ones."""
    rng = np.random.default_rng(seed)
    wide, narrow = rng.normal(size=(150, 6)), np.eye(6)[0] + spread * rng.normal(size=(150, 6))
    points = np.concatenate([wide, narrow]) * rng.uniform(0.1, 50.0, (300, 1))
    found = kmeans(points.astype(np.float32), 7, seed, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1.0, rtol=1e-5)
    unit = normalise(points.astype(np.float32))
    similarity = unit @ found.centres.T
    own = similarity[np.arange(300), found.assignment]
    assert (own >= similarity.max(1) - 1e-6).all()
    np.testing.assert_allclose(found.distances, 2.0 - 2.0 * own, atol=1e-5)


def test_a_repaired_cluster_takes_what_is_nearer_to_it_from_all_others() -> None:
    points = np.array([[0.0], [1.0], [10.0], [5.2], [11.0], [4.6], [12.0]], np.float32)
    centres = np.array([[0.5], [9.0], [50.0]], np.float32)
    to_all = np.square(points[:, None] - centres[None]).sum(2)
    found = repair_empty(points, centres, to_all.argmin(1), to_all.min(1))
    assert found.num_repaired == 1
    to_all = np.square(points[:, None] - found.centres[None]).sum(2)
    np.testing.assert_allclose(found.distances, to_all.min(1))
    assert found.assignment.tolist() == [0, 0, 1, 2, 1, 2, 1], "4.6 was of the smaller cluster"


@pytest.mark.parametrize("function", [lambda x: kmeans(x, 3, 0), lambda x: whiten(x, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_no_number_is_one_line(
    function: Callable[[np.ndarray], object], value: float
) -> None:
    points, _ = blobs()
    points[4, 1] = points[7, 0] = value
    with pytest.raises(
        UserError, match=r"NaN or infinity in 2 of 150 images, first in image 4; .* checkpoint"
    ):
        function(points)


def test_features_that_depend_on_each_other_are_whitened() -> None:
    # Three directions in ten dimensions: seven variances are zero up to rounding, some slightly negative.
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


@pytest.mark.parametrize("spherical", [False, True])
def test_features_of_float16_are_clustered_part_by_part(
    spherical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, _ = blobs()
    half = points.astype(np.float16)
    points = half.astype(np.float32)
    whole = kmeans(points, 5, seed=0, spherical=spherical)
    monkeypatch.setattr("engine.labels.clusters._ROWS_PER_PART", 40)
    parts = kmeans(half, 5, seed=0, spherical=spherical)
    assert len({*zip(parts.assignment.tolist(), whole.assignment.tolist(), strict=True)}) == 5
    nearest = np.square(parts.centres[parts.assignment] - (normalise(points) if spherical else points)).sum(1)
    np.testing.assert_allclose(parts.distances, nearest, atol=1e-2)
    monkeypatch.setattr("engine.labels.clusters._SAMPLE_NUMBERS", 50 * points.shape[1])
    sampled = kmeans(half, 5, seed=0, spherical=spherical)
    assert len(sampled.assignment) == len(points)
    assert np.bincount(sampled.assignment, minlength=5).min() > 0
