"""Balanced selection equals a plain one with full sorts, on small cases with many ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.labels.select import BalancedSelector, Selection, count_duplicates, suggest_per_class
from loaders.common.errors import UserError
from tests.engine.ranks import run_ranks


def select(scores: np.ndarray, top_k: int, per_class: int, rows=None, chunk: int = 1000) -> Selection:
    rows = np.arange(len(scores)) if rows is None else rows
    selector = BalancedSelector(scores.shape[1], top_k, per_class)
    for first in range(0, len(scores), chunk):
        selector.update(scores[first : first + chunk], rows[first : first + chunk])
    return selector.finish()


def brute_force(scores: np.ndarray, top_k: int, per_class: int, rows=None) -> list[tuple[int, int, float]]:
    """Select by full sorts of all candidates of each class."""
    rows = np.arange(len(scores)) if rows is None else rows
    candidates: list[list[tuple[float, int]]] = [[] for _ in range(scores.shape[1])]
    for row, row_scores in zip(rows, scores, strict=True):
        for c in sorted(range(len(row_scores)), key=lambda c: (-row_scores[c], c))[:top_k]:
            candidates[c].append((-row_scores[c], int(row)))
    return [(row, c, -s) for c, found in enumerate(candidates) for s, row in sorted(found)[:per_class]]


def pairs(selection: Selection) -> list[tuple[int, int, float]]:
    columns = (selection.row.tolist(), selection.label.tolist(), selection.score.tolist())
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("levels", [2, 5, 10_000])  # few levels give ties in rows and in classes
@pytest.mark.parametrize(("top_k", "per_class"), [(1, 1), (2, 3), (3, 7), (6, 40), (6, 1000)])
def test_equals_brute_force(levels: int, top_k: int, per_class: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.labels.select._AT_ONCE", 4)  # so that the buffer holds few pairs
    rng = np.random.default_rng(levels + top_k)
    scores = (rng.integers(0, levels, (150, 6)) / levels).astype(np.float32)
    rows = rng.permutation(1000)[:150].astype(np.int64)
    found = select(scores, top_k, per_class, rows, chunk=17)
    assert pairs(found) == brute_force(scores, top_k, per_class, rows)
    assert found.counts.tolist() == np.bincount(found.label, minlength=6).tolist()


def test_does_not_depend_on_the_chunks_or_their_order() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.integers(0, 4, (60, 5)) / 4).astype(np.float32)
    shuffled = rng.permutation(60)
    whole = select(scores, 2, 6)
    assert pairs(select(scores[shuffled], 2, 6, shuffled, chunk=7)) == pairs(whole)


def test_fewer_rows_than_asked_for_and_empty_classes() -> None:
    scores = np.array([[0.5, 0.2, 0.1], [0.9, 0.05, 0.01]], np.float32)
    found = select(scores, 2, 300)
    assert pairs(found) == brute_force(scores, 2, 300)
    assert found.counts.tolist() == [2, 2, 0]
    nothing = BalancedSelector(3, 1, 2).finish()
    assert len(nothing) == 0
    assert nothing.counts.tolist() == [0, 0, 0]
    assert count_duplicates(nothing, [1])[0].share == 0.0


@pytest.mark.parametrize("place", [0, 3])  # among the first K classes, and after K better ones
def test_nan_is_an_error_that_names_the_row(place: int) -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]] * 3, np.float32)
    scores[1, place] = np.nan
    with pytest.raises(UserError, match=f"row 41 has NaN for class {place}"):
        select(scores, 2, 2, np.array([40, 41, 42]))


def test_infinite_scores_are_scores() -> None:
    scores = np.array([[-np.inf, -np.inf, 0.0], [np.inf, -np.inf, np.inf]], np.float32)
    assert pairs(select(scores, 2, 2)) == brute_force(scores, 2, 2)


@pytest.mark.parametrize("top_k", [1, 2])
def test_scores_below_zero_and_both_zeros_are_in_their_order(top_k: int) -> None:
    scores = np.array([[-0.0, 0.0, -1.0], [-1.0, -2.0, -1.0], [-3.0, -2.0, -1.0]], np.float32)
    assert pairs(select(scores, top_k, 3)) == brute_force(scores, top_k, 3)


def test_smaller_selections_are_parts_of_the_largest() -> None:
    scores = np.random.default_rng(1).random((80, 5), np.float32)
    largest = select(scores, 3, 30)
    for p in (1, 4, 29):
        assert pairs(largest.best(p)) == brute_force(scores, 3, p)
        assert largest.best(p).counts.sum() == len(largest.best(p))


def test_duplicates_are_counted_as_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.1], [0.2, 0.1, 0.9]], np.float32)
    one, two = count_duplicates(select(scores, 2, 2), [1, 2])
    # P = 1: class 0 -> row 0, class 1 -> row 0, class 2 -> row 2
    assert (one.num_pairs, one.num_rows, one.num_shared_rows, one.num_extra_labels) == (3, 2, 1, 1)
    assert one.share == pytest.approx(1 / 3)
    # P = 2: class 0 -> rows 0, 1; class 1 -> rows 0, 1; class 2 -> row 2 alone
    assert (two.num_pairs, two.num_rows, two.num_shared_rows, two.num_short_classes) == (5, 3, 2, 1)


def test_suggestion_stops_where_the_share_is_first_exceeded() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    scores = 0.2 * rng.random((200, 4), np.float32)
    scores[np.arange(200), labels] += 0.5
    counted = count_duplicates(select(scores, 4, 120), [10, 50, 60, 120])
    assert [entry.num_extra_labels for entry in counted[:2]] == [0, 0]
    assert counted[2].num_extra_labels == 40
    assert suggest_per_class(counted) == 50
    assert suggest_per_class(counted, max_share=0.9) == 120
    assert suggest_per_class(counted[2:]) is None


def test_one_class_each() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.6, 0.7, 0.1], [0.5, 0.1, 0.5]], np.float32)
    selection = select(scores, 2, 3)
    assert pairs(selection.one_class_each("best")) == [
        (0, 0, scores[0, 0]),
        (2, 0, 0.5),
        (1, 1, scores[1, 1]),
    ]
    assert len(selection.one_class_each("drop")) == 0
    alone = select(scores, 1, 3)
    assert pairs(alone.one_class_each("drop")) == pairs(alone) == pairs(alone.one_class_each("best"))
    assert selection.one_class_each("best").counts.tolist() == [2, 1, 0]
    first, second = selection.by_place()
    assert pairs(first) == pairs(selection.one_class_each("best"))
    assert sorted(pairs(first) + pairs(second)) == sorted(pairs(selection))
    assert len(np.unique(second.row)) == len(second)


def selector_case(rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    scores = (np.random.default_rng(3).integers(0, 9, (40, 5)) / 9).astype(np.float32)
    selector = BalancedSelector(5, 2, 6)
    selector.update(scores[rank::num_ranks], np.arange(40)[rank::num_ranks])
    selector.join_ranks()
    found = selector.finish()
    return {"row": torch.from_numpy(found.row), "label": torch.from_numpy(found.label)}


def test_ranks_together_select_what_one_selects() -> None:
    one = selector_case(0, 1)
    for found in run_ranks(selector_case):
        assert all(torch.equal(found[name], one[name]) for name in one)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="top_k: expected 1 to 3"):
        BalancedSelector(3, 4, 1)
    with pytest.raises(UserError, match="rows per class"):
        BalancedSelector(3, 1, 0)
    with pytest.raises(ValueError, match=r"expected \[2, 3\], got \[2, 4\]"):
        BalancedSelector(3, 1, 1).update(np.zeros((2, 4), np.float32), np.arange(2))
    with pytest.raises(ValueError, match="float64"):
        BalancedSelector(3, 1, 1).update(np.zeros((2, 3)), np.arange(2))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_a_million_rows_of_a_thousand_classes_in_ten_seconds() -> None:
    import time

    selector = BalancedSelector(1000, 10, 500)
    rng = np.random.default_rng(0)
    seconds = 0.0
    for first in range(0, 512_000, 8000):
        scores = rng.random((8000, 1000), np.float32)
        start = time.perf_counter()
        selector.update(scores, np.arange(first, first + 8000))
        seconds += time.perf_counter() - start
    assert selector.finish().counts.tolist() == [500] * 1000
    assert seconds < 10
