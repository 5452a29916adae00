"""The labelled stream of a paired loader: its rows, their proportions, and from when on they change."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from loaders import build_paired_loader
from loaders.common.errors import UserError
from loaders.order.balanced import balanced_positions, group_by_class
from loaders.packs.labels.subsample import few_labels
from loaders.packs.labels.tables import LabelTable
from loaders.views import presets
from tests.loaders.settings import gathered


def table_of(rows, labels) -> LabelTable:
    return LabelTable.of(np.array(rows), np.array(labels), 3)


def paired(pack, table=None, **options):
    split = pack.split("train")
    settings = {"batch_size": 2, "mu": 3, "seed": 1, "num_threads": 2, "labels": table} | options
    views = ((presets.weak(16),), (presets.weak(16), presets.barlow_a(16)))
    return build_paired_loader(split, split, *views, **gathered(**settings))


def labeled(steps):
    steps = list(steps)
    index = torch.cat([step.labeled.index for step in steps]).tolist()
    labels = torch.cat([step.labeled.labels for step in steps]).tolist()
    return list(zip(index, labels, strict=True))


def test_only_rows_with_a_label_are_labelled(photo_pack):
    table = table_of([2, 5, 11], [1, 0, 2])  # not the true labels: the table decides
    with paired(photo_pack, table) as loader:
        steps = [step for epoch in range(3) for step in loader.epoch(epoch)]
    assert loader.steps_per_epoch == 4
    assert Counter(labeled(steps)) == {(2, 1): 8, (5, 0): 8, (11, 2): 8}
    assert {int(row) for step in steps for row in step.unlabeled.index} == set(range(24))


def test_another_table_counts_from_the_next_epoch_on(photo_pack):
    first, second = table_of([2, 5, 11], [1, 0, 2]), table_of([2, 7, 8, 9], [0, 1, 1, 2])
    with paired(photo_pack, first) as loader:
        begun = loader.epoch(0)
        early = [next(begun)]
        loader.set_labels(second)
        early += list(begun)
        late = list(loader.epoch(1))
    assert set(labeled(early)) == {(2, 1), (5, 0), (11, 2)}
    assert set(labeled(late)) == {(2, 0), (7, 1), (8, 1), (9, 2)}
    with paired(photo_pack, second) as loader:  # as in a resumed run
        again = list(loader.epoch(1, start_step=2))
    assert labeled(again) == labeled(late[2:])
    assert torch.equal(again[0].labeled.views[0], late[2].labeled.views[0])


def test_an_epoch_under_way_still_counts_its_bad_rows_when_another_table_takes_over(photo_pack):
    with paired(photo_pack, table_of([2, 5, 11], [1, 0, 2])) as loader:
        first = loader.labeled
        loader.set_labels(table_of([7, 8], [1, 1]))
        first.bad_rows[5] = "row 5: met by the epoch that began before"
        loader.labeled.bad_rows[7] = "row 7"
        assert sorted(loader.bad_rows) == [5, 7]


def test_tables_without_a_row_of_the_split_are_refused(photo_pack):
    empty = LabelTable.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    with pytest.raises(UserError, match="expected rows with a label, found none"):
        paired(photo_pack, empty)
    with paired(photo_pack) as loader, pytest.raises(UserError, match="found none"):
        loader.set_labels(empty)


def test_the_fingerprint_is_that_of_the_labels_in_use(photo_pack):
    first, second = table_of([2, 5, 11], [1, 0, 2]), table_of([2, 5, 11], [1, 0, 1])
    with paired(photo_pack) as true, paired(photo_pack, second) as other:
        assert true.fingerprint != other.fingerprint
        with paired(photo_pack, first) as loader:
            loader.set_labels(second)
            assert loader.fingerprint == other.fingerprint
            loader.set_labels(None)
            assert loader.fingerprint == true.fingerprint


def test_none_stands_for_the_true_labels(photo_pack):
    truth = photo_pack.split("train").labels().tolist()
    with paired(photo_pack) as loader:
        expected = labeled(loader.epoch(1))
    with paired(photo_pack, table_of([2, 5, 11], [1, 0, 2])) as loader:
        loader.set_labels(None)
        assert labeled(loader.epoch(1)) == expected
    assert all(label == truth[row] for row, label in expected)


def test_a_table_that_is_refused_changes_nothing(photo_pack):
    with paired(photo_pack, table_of([2, 5, 11], [1, 0, 2])) as loader:
        mark, expected = loader.fingerprint, labeled(loader.epoch(0))
        for table in [
            LabelTable.of([2], [0], 4),
            LabelTable.of([24], [0], 3),
            "true",
            LabelTable.of([], [], 3),
        ]:
            with pytest.raises(UserError, match=r"expected .*, found .*; "):
                loader.set_labels(table)
        assert loader.fingerprint == mark
        assert labeled(loader.epoch(0)) == expected


def test_balanced_batches_hold_every_class_equally_often(photo_pack):
    rows = list(range(12))
    labels = [0] * 9 + [1] * 2 + [2]
    with paired(photo_pack, table_of(rows, labels), batch_size=3, mu=2, balanced=True) as loader:
        steps = [step for epoch in range(3) for step in loader.epoch(epoch)]
    for step in steps:
        assert sorted(step.labeled.labels.tolist()) == [0, 1, 2]
    counted = Counter(row for row, _ in labeled(steps))
    assert counted[11] == len(steps) == 12
    assert counted[9] == counted[10] == 6
    assert {counted[row] for row in range(9)} <= {1, 2}  # each is drawn once before any is drawn twice
    views = [step.labeled.views[0][step.labeled.labels == 2] for step in steps]
    assert not torch.equal(views[0], views[1]), "a row that comes again is seen in another way"


def test_balanced_draws_do_not_depend_on_ranks_or_resume():
    groups = group_by_class(np.array([4, 0, 4, 0, 2, 4]))
    whole = balanced_positions(np.arange(60), groups, 7)
    parts = [balanced_positions(np.arange(i, i + 5), groups, 7) for i in range(0, 60, 5)]
    for column, joined in enumerate(whole):
        assert np.array_equal(joined, np.concatenate([part[column] for part in parts]))
    assert not np.array_equal(whole[1], balanced_positions(np.arange(60), groups, 8)[1])
    assert np.array_equal(np.bincount(np.array([4, 0, 4, 0, 2, 4])[whole[1]]), [20, 0, 20, 0, 20])


def test_pool_joins_splits_in_the_order_of_their_rows(digits_pack):
    pool = digits_pack.pool(("train", "unlabeled", "train"))
    train, unlabeled = digits_pack.split("train"), digits_pack.split("unlabeled")
    assert len(pool) == len(train) + len(unlabeled)
    rows = pool.rows(np.arange(len(pool)))
    expected = np.concatenate([s.rows(np.arange(len(s))) for s in (train, unlabeled)])
    assert np.array_equal(rows, np.sort(expected))
    with pytest.raises(UserError, match="no split 'odd'"):
        digits_pack.pool(("train", "odd"))
    with pytest.raises(UserError, match="found none"):
        digits_pack.pool(())


def test_few_labels_of_each_class(digits_pack):
    train = digits_pack.split("train")
    table = few_labels(train, 3, seed=1)
    assert np.bincount(table.label).tolist() == [3] * 10
    assert np.array_equal(digits_pack.labels.dense(len(digits_pack))[table.row], table.label)
    assert len(train.labeled_by(table)) == 30
    assert len(few_labels(train, None, seed=1)) == len(train)


def test_joined_tables_keep_the_first_label_of_a_row():
    true = table_of([3, 1], [0, 2])
    pseudo = LabelTable.of(np.array([0, 3, 7]), np.array([1, 1, 2]), 3, np.float32(0.5), "pseudo", 4)
    joined = true.join(pseudo)
    assert joined.row.tolist() == [0, 1, 3, 7]
    assert joined.label.tolist() == [1, 2, 0, 2]
    assert joined.source.tolist() == ["pseudo", "true", "true", "pseudo"]
    assert joined.cycle.tolist() == [4, 0, 0, 4]
    assert joined.confidence.tolist() == [0.5, 1, 1, 0.5]
    with pytest.raises(UserError, match="found 4"):
        true.join(LabelTable.of(np.array([0]), np.array([3]), 4))
