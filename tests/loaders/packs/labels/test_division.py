"""A division keeps shares in every class and copies together; only contents and the seed decide it."""

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.packs.labels.division import SplitDivision, divide, joined_groups, parse_shares, scarce_note

NO_PAIRS = np.zeros((0, 2), np.int64)


def contents(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (count, 2), dtype=np.uint64)


def divided(labels: np.ndarray, hashes: np.ndarray, shares: tuple[float, ...], seed: int = 0) -> np.ndarray:
    return divide(labels, joined_groups(len(labels), hashes, NO_PAIRS), hashes[:, 0], shares, seed)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((0.8, 0.2), [80, 20]), ((0.8, 0.1, 0.1), [80, 10, 10]), ((0.34, 0.33, 0.33), [34, 33, 33])],
)
def test_shares_of_each_class(shares: tuple[float, ...], expected: list[int]) -> None:
    labels, hashes = np.repeat([0, 1, -1], 100), contents(300)
    part = divided(labels, hashes, shares)
    for label in (-1, 0, 1):
        assert np.bincount(part[labels == label]).tolist() == expected
    other = divided(labels, hashes, shares, seed=1)
    assert 0 < (part != other).sum() < 300


def test_names_and_order_decide_nothing() -> None:
    labels, hashes = np.repeat([0, 1], 50), contents(100)
    order = np.random.default_rng(1).permutation(100)
    part = divided(labels, hashes, (0.7, 0.3))
    np.testing.assert_array_equal(divided(labels[order], hashes[order], (0.7, 0.3)), part[order])


def test_copies_and_chains_stay_together() -> None:
    labels, hashes = np.zeros(60, np.int64), contents(60)
    hashes[30:45] = hashes[:15]  # exact copies
    pairs = np.array([[50, 51], [51, 52]])
    groups = joined_groups(60, hashes, pairs)
    for seed in range(8):
        part = divide(labels, groups, hashes[:, 0], (0.5, 0.5), seed)
        np.testing.assert_array_equal(part[30:45], part[:15])
        assert len(set(part[50:53].tolist())) == 1
        assert abs(int(part.sum()) - 30) <= 1


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [1, 1, 1]), (5, [3, 1, 1])]
)
def test_small_classes(count: int, expected: list[int]) -> None:
    part = divided(np.zeros(count, np.int64), contents(count), (0.8, 0.1, 0.1))
    assert np.bincount(part, minlength=3).tolist() == expected


def test_large_groups_leave_no_part_empty() -> None:
    hashes = np.repeat(contents(3), 5, axis=0)
    part = divided(np.zeros(15, np.int64), hashes, (0.8, 0.1, 0.1))
    assert np.bincount(part).tolist() == [5, 5, 5]


def test_scarce_classes_are_named() -> None:
    labels, parts = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 2])
    note = scarce_note(labels, parts, ("train", "val", "test"), ("cat", "dog"))
    shown = "cat (2, none in val and test)"
    assert note == f"some classes have too few images for all of train, val, test: {shown}"
    assert scarce_note(labels[2:], parts[2:], ("a", "b", "c"), ("cat", "dog")) is None


@pytest.mark.parametrize("text", ["", "0.8;0.2", "1", "0", "0.8,0.1,0.1", "1.2", "-0.5", "nan"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="split: expected 2 shares between 0 and 1"):
        parse_shares(text, 2, "split")


def test_shares_that_do_not_sum_to_one() -> None:
    with pytest.raises(UserError, match=r"must sum to 1, found 0.8,0.1, which sum to 0.9"):
        parse_shares("0.8,0.1", 2, "split")
    assert parse_shares("0.8", 2, "split") == (0.8, 0.2)
    assert parse_shares("0.8,0.1", 3, "split") == (0.8, 0.1, 0.1)
    assert str(SplitDivision(("a", "b"), (0.8, 0.2), 3)) == "0.8,0.2 (seed 3)"
