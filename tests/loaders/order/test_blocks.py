import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.order.blocks import block_permute, block_plan
from loaders.order.permutation import permute
from tests.loaders.mixing import mixing_quality

SHARDS = np.full(100, 200)


def block_order(shard_rows: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    plan = block_plan(shard_rows, window, seed, epoch)
    return block_permute(np.arange(shard_rows.sum()), plan)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 9))
def test_every_row_once(shard_rows: list[int], window: int, seed: int) -> None:
    order = block_order(np.array(shard_rows), window, seed, 3)
    assert (np.sort(order) == np.arange(sum(shard_rows))).all()


def test_a_window_holds_its_shards_only() -> None:
    plan = block_plan(SHARDS, 8, 0, 0)
    order = block_permute(np.arange(20_000), plan)
    for window in range(13):
        start, stop = plan.window_starts[window : window + 2]
        assert set(order[start:stop] // 200) == set(plan.shards[8 * window : 8 * window + 8])
    assert stop - start == 4 * 200


def test_pieces_epochs_and_seeds() -> None:
    whole = block_order(SHARDS, 8, 0, 0)
    assert (block_permute(np.arange(1500, 1700), block_plan(SHARDS, 8, 0, 0)) == whole[1500:1700]).all()
    assert (whole != block_order(SHARDS, 8, 0, 1)).mean() > 0.9
    assert (whole != block_order(SHARDS, 8, 1, 0)).mean() > 0.9


def test_windows_of_one_size_are_shuffled_differently() -> None:
    plan = block_plan(SHARDS, 1, 0, 0)
    inner = block_permute(np.arange(20_000), plan).reshape(100, 200) % 200
    assert np.unique(inner, axis=0).shape[0] == 100


def test_mixing_grows_with_the_window_up_to_a_full_shuffle() -> None:
    labels = np.arange(20_000) // 1000  # a pack sorted by class, the worst case
    ratios = [mixing_quality(block_order(SHARDS, w, 0, 0), labels, 64).group_ratio for w in (1, 4, 16, 100)]
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.15
    assert 0.5 < ratios[2] < 0.7  # 16 of 100 shards hold about 12 of the 20 classes
    assert ratios[3] == pytest.approx(1, abs=0.02)
    full = mixing_quality(permute(np.arange(20_000), 20_000, 0, 0), labels, 64)
    assert full.group_ratio == pytest.approx(1, abs=0.02)
    assert full.neighbour_ratio == pytest.approx(1, abs=0.02)
    identity = mixing_quality(np.arange(20_000), labels, 64)
    assert identity.neighbour_ratio < 0.001
    assert identity.groups_per_batch < 1.1
