"""A part of a split is itself a split, with the same rows and labels, and works in the same loaders."""

import numpy as np
import pytest

from loaders import LoaderOptions, build_loader
from loaders.packs import Pack
from loaders.packs.labels.subsample import subsample_per_class
from loaders.views import presets


def test_rows_and_labels_are_those_of_the_positions(digits_pack: Pack) -> None:
    split = digits_pack.split("train")
    positions = np.array([0, 1, 2, 7, 9, 10, len(split) - 1])
    part = split.take(positions)
    assert len(part) == 7
    assert len(part.row_ranges) == 4
    assert np.array_equal(part.rows(np.arange(7)), split.rows(positions))
    assert np.array_equal(part.labels(), split.labels()[positions])
    assert np.array_equal(part.take(np.array([3, 6])).rows(np.arange(2)), split.rows(positions[[3, 6]]))


def test_a_loader_reads_exactly_the_chosen_rows(digits_pack: Pack) -> None:
    split = digits_pack.split("train")
    chosen = subsample_per_class(split.labels(), 2, seed=0)
    loader = build_loader(
        split.take(chosen), (presets.evaluation(16),), options=LoaderOptions(num_threads=1), batch_size=20
    )
    with loader:
        (batch,) = loader.epoch(0)
    assert sorted(batch.index.tolist()) == split.rows(chosen).tolist()
    assert batch.labels is not None
    assert np.bincount(batch.labels.numpy()).tolist() == [2] * 10


@pytest.mark.parametrize("positions", [[], [3, 3], [5, 4]])
def test_positions_must_increase(digits_pack: Pack, positions: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        digits_pack.split("train").take(np.array(positions, np.int64))


def test_positions_must_lie_in_the_split(digits_pack: Pack) -> None:
    with pytest.raises(IndexError):
        digits_pack.split("train").take(np.array([0, 10**6]))
