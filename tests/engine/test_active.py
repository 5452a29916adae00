"""Which images are asked for, against plain sorts, with ties, small and empty clusters, and NaN."""

from __future__ import annotations

import numpy as np
import pytest

from engine.active import margins, random_choice, smallest, smallest_per_cluster
from engine.clusters import kmeans, normalise
from loaders.errors import UserError


def test_margin_is_the_lead_of_the_first_over_the_second():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), 50).astype(np.float32)
    expected = [sorted(row)[-1] - sorted(row)[-2] for row in p]
    np.testing.assert_allclose(margins(p), expected, rtol=1e-6)
    p[7, 2] = np.nan
    with pytest.raises(UserError, match="image 7 has a NaN"):
        margins(p)


@pytest.mark.parametrize("levels", [2, 1000])
def test_smallest_per_cluster_equals_a_sort(levels):
    rng = np.random.default_rng(levels)
    margin = (rng.integers(0, levels, 90) / levels).astype(np.float32)
    cluster = rng.integers(0, 5, 90)
    cluster[cluster == 3] = 2  # nobody in 3
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
    """Against a plain Lloyd iteration by cosine similarity from the centres that were found."""
    rng = np.random.default_rng(0)
    directions = normalise(rng.normal(size=(3, 8)).astype(np.float32))
    points = np.repeat(directions, 40, 0) + 0.1 * rng.normal(size=(120, 8)).astype(np.float32)
    lengths = rng.uniform(0.1, 10, (120, 1)).astype(np.float32)
    found = kmeans(points * lengths, 3, seed=0, spherical=True)
    groups = found.assignment.reshape(3, 40)
    assert all(len(set(group)) == 1 for group in groups)
    assert len(set(groups[:, 0])) == 3
    unit = normalise(points)
    for _ in range(3):  # a fixed point of Lloyd's algorithm
        centres = np.stack([unit[found.assignment == c].mean(0) for c in range(3)])
        nearest = np.square(unit[:, None] - centres[None]).sum(2).argmin(1)
        assert (nearest == found.assignment).all()
