"""Images to request equal those of plain sorts, also with ties, small or empty clusters, and NaN."""

from __future__ import annotations

import numpy as np
import pytest

from engine.labels.acquisition import k_centre, margins, random_choice, smallest, smallest_per_cluster
from engine.labels.clusters import kmeans, normalise
from loaders.common.errors import UserError


def test_margin_is_the_lead_of_the_first_over_the_second():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), 50).astype(np.float32)
    expected = [sorted(row)[-1] - sorted(row)[-2] for row in p]
    np.testing.assert_allclose(margins(p), expected, rtol=1e-6)
    p[7, 2] = np.nan
    with pytest.raises(UserError, match="image 7 has a NaN"):
        margins(p)
    with pytest.raises(UserError, match=r"^margins: expected a classifier of two classes or more, found one"):
        margins(np.ones((3, 1), np.float32))


@pytest.mark.parametrize("levels", [2, 1000])
def test_smallest_per_cluster_equals_a_sort(levels):
    rng = np.random.default_rng(levels)
    margin = (rng.integers(0, levels, 90) / levels).astype(np.float32)
    cluster = rng.integers(0, 5, 90)
    cluster[cluster == 3] = 2  # cluster 3 is empty
    cluster[:2] = 4
    for count in (0, 1, 4, 30, 100):
        expected = []
        for c in range(5):
            members = [i for i in range(90) if cluster[i] == c]
            expected += sorted(members, key=lambda i: (margin[i], i))[:count]
        assert smallest_per_cluster(margin, cluster, 5, count).tolist() == sorted(expected)
        everything = sorted(range(90), key=lambda i: (margin[i], i))[:count]
        assert smallest(margin, count).tolist() == sorted(everything)


def test_random_choice_is_even_and_repeats():
    assert random_choice(10, 20, 0).tolist() == list(range(10))
    assert random_choice(100, 5, 3).tolist() == random_choice(100, 5, 3).tolist()
    counts = np.bincount(np.concatenate([random_choice(20, 5, seed) for seed in range(2000)]))
    assert counts.min() > 420
    assert counts.max() < 580


def test_kmeans_on_unit_rows_groups_by_angle_as_lloyd_does():
    """A plain Lloyd iteration by cosine similarity leaves the centres found unchanged."""
    rng = np.random.default_rng(0)
    directions = normalise(rng.normal(size=(3, 8)).astype(np.float32))
    points = np.repeat(directions, 40, 0) + 0.1 * rng.normal(size=(120, 8)).astype(np.float32)
    lengths = rng.uniform(0.1, 10, (120, 1)).astype(np.float32)
    found = kmeans(points * lengths, 3, seed=0, spherical=True)
    groups = found.assignment.reshape(3, 40)
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(groups[:, 0])) == 3
    unit = normalise(points)
    for _ in range(3):  # the result is a fixed point of Lloyd's algorithm
        centres = np.stack([unit[found.assignment == c].mean(0) for c in range(3)])
        nearest = np.square(unit[:, None] - centres[None]).sum(2).argmin(1)
        assert (nearest == found.assignment).all()


def farthest_first(features, count, first, known):
    """Return the greedy choice, computed from all pairwise distances in float64."""
    points = np.concatenate([known, features]).astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    centres, chosen = list(range(len(known))), []
    if not centres:
        centres, chosen = [first], [first]
    while len(chosen) < count:
        nearest = distance[len(known) :, centres].min(1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        centres.append(len(known) + chosen[-1])
    return chosen


@pytest.mark.parametrize("num_known", [0, 1, 7])
def test_k_centre_equals_the_greedy_choice_by_all_distances(num_known):
    rng = np.random.default_rng(num_known)
    features = rng.normal(100.0, 1.0, (60, 5)).astype(np.float32)  # far from 0, where squares lose precision
    known = rng.normal(100.0, 1.0, (num_known, 5)).astype(np.float32)
    found = k_centre(features, 25, 3, known)
    first = int(random_choice(60, 1, 3)[0])
    assert found.tolist() == farthest_first(features, 25, first, known)
    assert k_centre(features, 25, 3, known if num_known else None).tolist() == found.tolist()
    assert k_centre(features, 10, 3, known).tolist() == found[:10].tolist()
    if num_known:
        assert k_centre(features, 25, 4, known).tolist() == found.tolist()


def test_k_centre_reaches_every_clump_first():
    """One image of each distant clump is chosen first; copies of chosen images are chosen last."""
    clump = np.repeat(np.arange(10), 20)
    features = np.eye(10, dtype=np.float32)[clump] * 50
    features += np.random.default_rng(0).normal(0, 0.1, features.shape).astype(np.float32)
    assert set(clump[k_centre(features, 10, 0)]) == set(range(10))
    known = features[clump < 4]
    assert set(clump[k_centre(features, 6, 0, known)]) == set(range(4, 10))
    copies = np.repeat(features[:3], 2, axis=0)
    assert sorted(k_centre(copies, 99, 0).tolist()) == list(range(6))
    assert sorted(k_centre(copies, 3, 0) // 2) == [0, 1, 2]


def test_k_centre_refuses_features_without_distances():
    features = np.zeros((4, 2), np.float32)
    features[2, 1] = np.inf
    with pytest.raises(UserError, match="first in image 2"):
        k_centre(features, 2, 0)


def test_k_centre_reads_features_of_float16_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    half = rng.normal(size=(90, 6)).astype(np.float16)
    known = rng.normal(size=(4, 6)).astype(np.float16)
    whole = k_centre(half.astype(np.float32), 12, 0, known.astype(np.float32))
    monkeypatch.setattr("engine.labels.acquisition._ROWS_PER_PART", 25)
    assert k_centre(half, 12, 0, known).tolist() == whole.tolist()
