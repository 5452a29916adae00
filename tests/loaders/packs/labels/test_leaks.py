"""Shared rows and copies equal those found by sets of hashes; refusals name the split and the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.labels.leaks import Leak, _Contents, check_leak, find_leak, shared_rows
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tree


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """`train` has 12 images, `test` 6 others, `seen` 2 others and copies of 2 images of `train`."""
    folder = tmp_path_factory.mktemp("leaks")
    write_tree(folder / "train", class_tree(2, 6))
    write_tree(folder / "test", class_tree(2, 3, seed=500))
    copies = {"c0/a.jpg": jpeg(1), "c1/b.jpg": jpeg(103), "c0/c.jpg": jpeg(900), "c1/d.jpg": jpeg(901)}
    write_tree(folder / "seen", copies)
    return pack(folder / "pack", *(f"{name}={folder / name}" for name in ("train", "test", "seen")))


def test_rows_and_copies_are_told_apart(packed: Pack) -> None:
    rows = np.arange(len(packed))
    hashes = [packed.columns.content_hash[row].tobytes() for row in rows]
    for name in packed.splits:
        split = packed.split(name)
        inside = set(split.rows(np.arange(len(split))).tolist())
        contents = {hashes[row] for row in inside}
        own, copies = shared_rows(packed, rows, split)
        assert own.tolist() == [row in inside for row in rows]
        assert copies.tolist() == [row not in inside and hashes[row] in contents for row in rows]
    pool = packed.pool(("train", "seen")).take(np.array([0, 3, 13]))  # rows that are not adjacent
    own, _ = shared_rows(packed, rows, pool)
    assert np.array_equal(rows[own], pool.rows(np.arange(3)))


def test_hashes_are_found_in_blocks_and_compared_whole(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaders.packs.labels.leaks._BLOCK", 5)
    own, copies = shared_rows(packed, np.arange(12), packed.split("seen"))
    assert (own.sum(), copies.sum()) == (0, 2)
    held = packed.split("test")
    known = packed.columns.content_hash[held.rows(np.arange(len(held)))]
    other = known.copy()
    other[:, 1] ^= np.uint64(1)  # equal in the first half only
    assert _Contents(held).hold(known).all()
    assert not _Contents(held).hold(other).any()


def test_another_pack_shares_content_but_no_rows(packed: Pack, tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"c0/x.jpg": jpeg(1), "c1/y.jpg": jpeg(7777)})
    other = pack(tmp_path / "p", f"test={tmp_path / 'in'}")
    leak = find_leak(packed, np.arange(len(packed)), other.split("test"))
    assert leak is not None
    assert (leak.num_rows, leak.num_copies) == (0, 2)  # one copy in `train` and one in `seen`


def test_a_leak_is_refused_by_name_and_number_or_named(packed: Pack) -> None:
    clean, seen = packed.split("test"), packed.split("seen")
    rows = np.arange(14)
    assert find_leak(packed, np.arange(12), clean) is None
    assert check_leak(packed, np.arange(12), clean, False) == ()
    expected = Leak("test", 14, 2, 0, packed.key(12))
    assert find_leak(packed, rows, clean) == expected
    message = "labels: expected no image of split 'test', .* found 2 rows of split 'test' among 14 images"
    with pytest.raises(UserError, match=message):
        check_leak(packed, rows, clean, False)
    both = check_leak(packed, np.array([0, 1, 18]), seen, True)
    assert both == (
        f"labels: 1 row and 1 copy of a row of split 'seen' among 3 images, such as {packed.key(1)!r}",
    )
