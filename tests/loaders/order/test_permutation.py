import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from loaders.common.errors import UserError
from loaders.order.permutation import (
    num_steps,
    permute,
    permute_stream,
    rank_slice,
    step_positions,
    stream_positions,
)

GOLDEN_SMALL = [7, 4, 9, 6, 8, 0, 3, 2, 5, 1]
GOLDEN_LARGE = [19398356, 10756390, 12631089, 69589637, 60381971]
EDGE_SIZES = [1, 2, 3, 5, 7, 31, 97, 257, 7919, 104_729, 1_000_000]
EDGE_SIZES += [2**k + d for k in (2, 3, 8, 15, 16, 17, 20) for d in (-1, 0, 1)]


def full_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return permute(np.arange(num_rows), num_rows, seed, epoch)


def uniform_p_value(counts: np.ndarray, degrees: int) -> float:
    expected = counts.mean()
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), degrees))


def test_the_order_is_fixed_for_ever() -> None:
    assert full_order(10, 0, 0).tolist() == GOLDEN_SMALL
    assert permute(np.arange(5), 10**8, 3, 2, 1).tolist() == GOLDEN_LARGE


@pytest.mark.parametrize("num_rows", EDGE_SIZES)
def test_every_row_once_at_the_edges(num_rows: int) -> None:
    assert np.bincount(full_order(num_rows, 3, 1), minlength=num_rows).max() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30_000), st.integers(-(2**63), 2**64), st.integers(0, 2**40), st.integers(0, 2**40))
def test_every_row_once(num_rows: int, seed: int, epoch: int, stream: int) -> None:
    rows = permute(np.arange(num_rows), num_rows, seed, epoch, stream)
    assert (np.sort(rows) == np.arange(num_rows)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2**40, 2**60), st.integers(0, 100))
def test_huge_splits_stay_in_range_without_collisions(num_rows: int, seed: int) -> None:
    rows = permute(np.arange(1000) * (num_rows // 1000), num_rows, seed, 0)
    assert rows.min() >= 0
    assert rows.max() < num_rows
    assert np.unique(rows).size == 1000


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5, 6])
def test_small_splits_take_every_permutation_equally_often(num_rows: int) -> None:
    kinds = math.factorial(num_rows)
    tries = min(12 * kinds + 2000, 5000)
    seen = Counter(tuple(full_order(num_rows, seed, 7)) for seed in range(tries))
    counts = np.zeros(kinds)
    counts[: len(seen)] = list(seen.values())
    assert uniform_p_value(counts, kinds - 1) > 1e-4


@pytest.mark.parametrize("num_rows", [17, 64, 101])
def test_each_row_is_equally_likely_at_each_position(num_rows: int) -> None:
    counts = np.zeros((num_rows, num_rows))
    for epoch in range(2000):
        counts[np.arange(num_rows), full_order(num_rows, 5, epoch)] += 1
    assert uniform_p_value(counts, (num_rows - 1) ** 2) > 1e-4


@pytest.mark.parametrize("num_rows", [5000, 65_537])  # permuted in 24 rounds, and in 8
def test_large_splits_mix_as_a_full_shuffle(num_rows: int) -> None:
    orders = [full_order(num_rows, 0, epoch) for epoch in range(8)]
    joint = np.zeros((16, 16))
    for order in orders:
        distance = np.abs(np.diff(order)).mean() / ((num_rows + 1) / 3)
        assert abs(distance - 1) < 5 / math.sqrt(num_rows)
        np.add.at(joint, (order[:-1] * 16 // num_rows, order[1:] * 16 // num_rows), 1)
    assert uniform_p_value(joint, 255) > 1e-4
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(num_rows)
        assert (one == other).sum() < 10  # Poisson with mean 1


def test_seed_epoch_and_stream_each_change_the_order() -> None:
    positions = np.arange(1000)
    keys = list(itertools.product((0, 1, 2), (0, 1, 2), (0, 1)))
    orders = {tuple(permute(positions, 1000, *key)) for key in keys}
    assert len(orders) == len(keys)


def test_positions_can_be_asked_in_any_piece() -> None:
    whole = full_order(70_000, 1, 2)
    assert (permute(np.arange(400, 900), 70_000, 1, 2) == whole[400:900]).all()
    assert permute(np.array([], dtype=np.int64), 70_000, 1, 2).size == 0


@pytest.mark.parametrize(
    ("positions", "num_rows", "epoch"), [([10], 10, 0), ([-1], 10, 0), ([0], 0, 0), ([0], 1, -1)]
)
def test_out_of_range_is_refused(positions: list[int], num_rows: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        permute(np.array(positions), num_rows, 0, epoch)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("step", [0, 1, 17])
def test_ranks_join_to_one_ranks_batch(num_ranks: int, step: int) -> None:
    parts = [step_positions(step, 1000, 48, rank, num_ranks)[0] for rank in range(num_ranks)]
    assert {part.size for part in parts} == {48 // num_ranks}
    assert (np.concatenate(parts) == np.arange(step * 48, step * 48 + 48)).all()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_rows", [1, 23, 24, 25, 500])
def test_evaluation_covers_each_row_exactly_once(num_rows: int, num_ranks: int) -> None:
    seen = []
    for step in range(num_steps(num_rows, 24, drop_last=False)):
        for rank in range(num_ranks):
            positions, valid = step_positions(step, num_rows, 24, rank, num_ranks, drop_last=False)
            assert positions.size == 24 // num_ranks
            assert positions.max() < num_rows
            seen.append(positions[valid])
    assert np.concatenate(seen).tolist() == list(range(num_rows))


def test_training_drops_the_last_partial_batch() -> None:
    assert num_steps(100, 32) == 3
    assert num_steps(100, 32, drop_last=False) == 4
    assert all(step_positions(step, 100, 32)[1].all() for step in range(3))
    with pytest.raises(ValueError, match="step: expected 0 to 2, found 3"):
        step_positions(3, 100, 32)


def test_impossible_batches_are_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"multiple of the 3 ranks, found 32; use 30 or 33"):
        step_positions(0, 100, 32, 0, 3)
    with pytest.raises(UserError, match=r"at most the 100 rows of the split, found 128"):
        step_positions(0, 100, 128)
    with pytest.raises(UserError, match="at least 1, found 0"):
        step_positions(0, 100, 0)
    with pytest.raises(ValueError, match="rank"):
        rank_slice(0, 32, 2, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 12), st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 5))
def test_a_stream_crosses_epochs_without_losing_rows(
    num_rows: int, parts: int, num_ranks: int, seed: int
) -> None:
    batch_size = 12 * parts
    steps = -(-3 * num_rows // batch_size)
    epochs, rows = [], []
    for step, rank in itertools.product(range(steps), range(num_ranks)):
        epoch, positions = stream_positions(step, batch_size, num_rows, rank, num_ranks)
        epochs.append(epoch)
        rows.append(permute_stream(epoch, positions, num_rows, seed))
    flat_epochs, flat_rows = np.concatenate(epochs), np.concatenate(rows)
    assert (np.diff(flat_epochs) >= 0).all()
    for epoch in range(3):
        assert (flat_rows[flat_epochs == epoch] == full_order(num_rows, seed, epoch)).all()
