"""Few labels over many ranks: every rank gets an equal number of images."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from loaders import LoaderOptions
from loaders.classification import LabeledLoaders, build_labeled_loader, fit_to_ranks
from loaders.common.notice import tell
from loaders.packs import LabelTable, Pack
from loaders.views import presets
from recipes import supervised

ONE = LoaderOptions(num_threads=1)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "num_ranks", "pairs", "rows", "fitting"),
    [
        (20, 16, 2, True, 20, 16),
        (10, 16, 2, True, 10, 8),
        (10, 16, 2, False, 10, 10),
        (3, 16, 2, True, 3, 2),
        (3, 16, 1, True, 3, 2),
        (1, 16, 1, True, 1, 1),
        (1, 16, 2, True, 2, 2),
        (3, 16, 4, True, 6, 4),
        (2, 8, 8, False, 8, 8),
    ],
)
def test_batches_fit_rows_and_ranks(
    photo_pack: Pack, num_rows: int, batch_size: int, num_ranks: int, pairs: bool, rows: int, fitting: int
) -> None:
    few = photo_pack.split("train").take(np.arange(num_rows))
    fitted, size = fit_to_ranks(few, batch_size, num_ranks, pairs)
    assert (len(fitted), size) == (rows, fitting)
    assert size % num_ranks == 0
    assert np.array_equal(np.unique(fitted.rows(np.arange(len(fitted)))), np.arange(num_rows))


def test_a_batch_of_all_labels_is_said_of_those_of_the_run(
    photo_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell.cache_clear()
    options = {"pack": photo_pack.path, "out": tmp_path, "test_split": "", "labels_per_class": 2}
    labels = LabelTable.of(np.array([2, 7, 9]), np.array([0, 1, 2]), len(photo_pack.classes))
    for batch_size in (2, 64, 64):
        fields = supervised.Config(**options, batch_size=batch_size)  # type: ignore[arg-type]
        loaders = LabeledLoaders(photo_pack, fields, (presets.weak(16),))
        with build_labeled_loader(photo_pack, labels, loaders.views, batch_size, ONE) as phase:
            assert phase.batch_size == 2
        with closing(loaders.with_labels(labels).training(ONE)) as rehearsal:
            assert rehearsal.batch_size == 2
        with closing(loaders.training(ONE)) as whole:
            assert whole.batch_size == min(batch_size, 6)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("batch_size")]
    assert said == [
        "batch_size: 6 instead of 64, since 6 images are labelled; give --batch-size 6, or more labels"
    ]


def test_more_ranks_than_labels_share_them(photo_pack: Pack) -> None:
    labels = LabelTable.of(np.array([2, 7, 9]), np.array([0, 1, 2]), len(photo_pack.classes))
    seen = []
    for rank in range(4):
        views = (presets.weak(16),)
        options = LoaderOptions(rank=rank, num_ranks=4, num_threads=1)
        with build_labeled_loader(photo_pack, labels, views, 16, options) as loader:
            (batch,) = loader.epoch(0)
            assert batch.labels is not None
            seen += list(zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
    assert len(seen) == 4
    assert set(seen) <= {(2, 0), (7, 1), (9, 2)}


def test_balanced_training_draws_every_class_equally_often(photo_pack: Pack) -> None:
    rows, classes = np.array([0, 1, 2, 3, 4, 8]), np.array([0, 0, 0, 0, 1, 2])
    labels, views = LabelTable.of(rows, classes, len(photo_pack.classes)), (presets.weak(16),)
    options = LoaderOptions(num_threads=1)
    with build_labeled_loader(photo_pack, labels, views, 3, options, balanced=True) as loader:
        assert loader.steps_per_epoch == 2
        epochs = [list(loader.epoch(epoch)) for epoch in range(2)]
        (resumed,) = loader.epoch(1, start_step=1)
        assert "balanced" in loader.fingerprint["sampler"]
    batches = [batch for epoch in epochs for batch in epoch]
    assert all(sorted(batch.labels.tolist()) == [0, 1, 2] for batch in batches)
    drawn = [row for batch in batches for row in batch.index.tolist()]
    assert sorted(row for row in drawn if row < 4) == [0, 1, 2, 3], "each of a class before any comes twice"
    assert resumed.index.tolist() == epochs[1][1].index.tolist()
    ranks = []
    for rank in range(3):
        own = LoaderOptions(num_threads=1, rank=rank, num_ranks=3)
        with build_labeled_loader(photo_pack, labels, views, 3, own, balanced=True) as loader:
            ranks.append([batch.index.tolist() for batch in loader.epoch(0)])
    assert [sorted(chain(*step)) for step in zip(*ranks, strict=True)] == [
        sorted(batch.index.tolist()) for batch in epochs[0]
    ]
    with build_labeled_loader(photo_pack, labels, views, 3, options) as loader:
        assert "sampler" not in loader.fingerprint


def test_an_image_of_several_tables_comes_once_for_each_label(photo_pack: Pack) -> None:
    """This holds for any number of ranks; with one table nothing changes."""
    classes = len(photo_pack.classes)
    first = LabelTable.of(np.array([1, 4, 6, 9]), np.array([0, 1, 2, 0]), classes)
    second = LabelTable.of(np.array([4, 9]), np.array([2, 1]), classes)
    third = LabelTable.of(np.array([9]), np.array([2]), classes)
    pairs = [(1, 0), (4, 1), (4, 2), (6, 2), (9, 0), (9, 1), (9, 2)]
    for num_ranks, batch_size, rest in ((1, 7, 0), (2, 6, 1)):
        seen = []
        for rank in range(num_ranks):
            options = LoaderOptions(num_threads=1, rank=rank, num_ranks=num_ranks)
            tables = (first, second, third)
            with build_labeled_loader(photo_pack, tables, (presets.weak(16),), batch_size, options) as loader:
                for batch in loader.epoch(0):
                    assert batch.labels is not None
                    seen += list(zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
                marks = loader.fingerprint
        assert len(seen) == len(set(seen)) == 7 - rest
        assert set(seen) <= set(pairs)
        assert marks["labels"].count("of a table") == 3
    assert photo_pack.pool(photo_pack.splits).labeled_by((first,)).labels((first,)).tolist() == [0, 1, 2, 0]


def test_balanced_draws_take_images_under_each_of_their_classes(photo_pack: Pack) -> None:
    first = LabelTable.of(np.arange(4), np.array([0, 0, 0, 1]), len(photo_pack.classes))
    second = LabelTable.of(np.array([0]), np.array([2]), len(photo_pack.classes))
    options = LoaderOptions(num_threads=1)
    with build_labeled_loader(
        photo_pack, (first, second), (presets.weak(16),), 3, options, balanced=True
    ) as loader:
        (batch,) = loader.epoch(0)
    assert batch.labels is not None
    assert sorted(batch.labels.tolist()) == [0, 1, 2]
    assert batch.index[batch.labels == 2].tolist() == [0]
