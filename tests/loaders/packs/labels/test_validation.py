"""Images set aside for validation: how many of each class, and that no training uses them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loaders.classification import unlabeled_images
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.labels.leaks import find_leak
from loaders.packs.labels.subsample import training_labels
from loaders.packs.labels.validation import SET_ASIDE_PATH, Division, divide_labels, hold_out
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits

NUM_TRAIN, NUM_HELD = 20, 3
DEFAULT: dict[str, Any] = {
    "labeled_split": "train",
    "test_split": "test",
    "label_seed": 0,
    "allow_leak": False,
    "init": None,
    "validation_split": None,
    "validation_share": None,
}


def pack_of(digits: Path, out: Path, held: str, first_held: int = NUM_TRAIN) -> Pack:
    """Pack two classes as `train`, a copy of it as `unlabeled`, and the splits `held` and `test`."""
    parts = {"train": (0, NUM_TRAIN), held: (first_held, first_held + NUM_HELD), "test": (30, 30 + NUM_HELD)}
    for split, (first, stop) in parts.items():
        for digit in "01":
            folder = out / split / digit
            folder.mkdir(parents=True)
            for source in sorted((digits / "train" / digit).glob("*.jpg"))[first:stop]:
                (folder / source.name).write_bytes(source.read_bytes())
    splits = [f"unlabeled={out / 'train'}", *(f"{split}={out / split}" for split in parts)]
    pack_dataset(PackOptions(parse_splits(splits), out / "pack", workers=1))
    return open_pack(out / "pack")


@pytest.fixture(scope="module")
def pack(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack_of(digits_folder, tmp_path_factory.mktemp("held"), "held")


def divide(pack: Pack, labels: LabelTable | None = None, **changes: Any) -> Division:
    known = training_labels(pack, "train", None, 0) if labels is None else labels
    return divide_labels(pack, known, SimpleNamespace(**{**DEFAULT, **changes}))


def of_pack(run: Path, pack: Pack) -> None:
    """Mark a run folder as one of a run on a pack."""
    (run / "config.json").write_text(json.dumps({"config": {"pack": str(pack.path)}}))


def per_class(labels: LabelTable | None) -> list[int]:
    assert labels is not None
    return np.bincount(labels.label, minlength=2).tolist()


def test_a_tenth_is_set_aside_where_every_class_has_enough(pack: Pack) -> None:
    found = divide(pack)
    assert found.set_aside
    assert found.said == "4 labels set aside (each is 25 points), a tenth of each class"
    assert (per_class(found.validation), per_class(found.training)) == ([2, 2], [18, 18])
    assert not np.isin(found.training.row, found.validation.row).any()
    again, other = divide(pack), divide(pack, label_seed=1)
    assert np.array_equal(found.validation.row, again.validation.row)
    assert not np.array_equal(found.validation.row, other.validation.row)


def test_nothing_is_set_aside_where_a_class_has_too_few(pack: Pack) -> None:
    labels = training_labels(pack, "train", None, 0)
    found = divide(pack, labels.of_rows(labels.row[1:]))
    assert found.validation is None
    assert found.said == "none, since a class has fewer than 20 labels (19 of '0')"
    assert len(found.training) == 39


@pytest.mark.parametrize("off", [{"validation_split": ""}, {"validation_share": 0.0}])
def test_nothing_is_set_aside_where_nobody_asks(pack: Pack, off: dict[str, Any]) -> None:
    found = divide(pack, **off)
    assert (found.validation, len(found.training), found.said) == (None, 40, "none, as asked for")


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_split_of_that_name_comes_first(digits_folder: Path, tmp_path: Path, name: str) -> None:
    pack = pack_of(digits_folder, tmp_path, name)
    found = divide(pack)
    assert (found.said, found.set_aside, len(found.training)) == (f"6 images of split '{name}'", False, 40)
    first, stop = pack.split(name).row_ranges[0]
    assert found.validation is not None
    assert found.validation.row.tolist() == list(range(first, stop))
    assert (
        divide(pack, test_split=name).said == "4 labels set aside (each is 25 points), a tenth of each class"
    )
    both = training_labels(pack, "train", None, 0).join(training_labels(pack, name, None, 0))
    shared = divide(pack, both)
    assert shared.validation is None
    assert shared.said.startswith(f"none, since labels are 6 rows of split '{name}' among 46 images")


def test_a_split_can_be_named_and_is_not_trained_on(pack: Pack) -> None:
    found = divide(pack, validation_split="held")
    assert (per_class(found.validation), len(found.training), found.set_aside) == ([3, 3], 40, False)
    both = training_labels(pack, "train", None, 0).join(training_labels(pack, "held", None, 0))
    with pytest.raises(UserError, match=r"no image of split 'held', which is measured on, found 6 rows"):
        divide(pack, both, validation_split="held")
    allowed = divide(pack, both, validation_split="held", allow_leak=True)
    assert allowed.leaks[0].startswith("labels: 6 rows of split 'held'")
    with pytest.raises(UserError, match="a split other than --test-split, found 'test' for both"):
        divide(pack, validation_split="test")
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        divide(pack, validation_split="nowhere")


def test_copies_of_test_images_are_not_chosen_on(digits_folder: Path, tmp_path: Path) -> None:
    """Two of the three images of each class in `val` are copies of images in `test`."""
    pack = pack_of(digits_folder, tmp_path, "val", first_held=31)
    found = divide(pack)
    assert (found.validation, len(found.training)) == (None, 40)
    assert found.said.startswith(
        "none, since images of 'val' are 4 copies of rows of split 'test' among 6 images"
    )
    with pytest.raises(UserError, match=r"validation_split: expected no image of split 'test'.* 4 copies"):
        divide(pack, validation_split="val")
    allowed = divide(pack, validation_split="val", allow_leak=True)
    assert (per_class(allowed.validation), len(allowed.leaks)) == ([3, 3], 1)
    assert divide(pack, validation_split="val", test_split="").leaks == ()


def test_a_table_can_be_used_again(pack: Pack, digits_pack: Pack, tmp_path: Path) -> None:
    first = divide(pack, validation_share=0.25, label_seed=3)
    assert per_class(first.validation) == [5, 5]
    path = tmp_path / "run" / SET_ASIDE_PATH
    assert first.validation is not None
    first.validation.write(path)
    of_pack(tmp_path / "run", pack)
    for again in (divide(pack, validation_split=str(path)), divide(pack, init=tmp_path / "run")):
        assert np.array_equal(again.training.row, first.training.row)
        assert again.validation is not None
        assert np.array_equal(again.validation.row, first.validation.row)
        assert str(path) in again.said
    with pytest.raises(UserError, match="expected one of the 10 classes of the pack"):
        divide(digits_pack, training_labels(digits_pack, "train", None, 0), validation_split=str(path))
    with pytest.raises(UserError, match="no label table at"):
        divide(pack, validation_split=str(tmp_path / "none.parquet"))


def test_what_a_start_set_aside_in_another_pack_or_to_be_tested_says_nothing_here(
    pack: Pack, tmp_path: Path
) -> None:
    """The rows of another pack stand for other images."""
    run = tmp_path / "run"
    known = training_labels(pack, "train", None, 0)
    known.of_rows(known.row[:5]).write(run / SET_ASIDE_PATH)
    (run / "config.json").write_text(json.dumps({"config": {"pack": str(tmp_path / "elsewhere")}}))
    assert "a tenth of each class" in divide(pack, init=run).said
    of_pack(run, pack)
    assert str(run) in divide(pack, init=run).said
    training_labels(pack, "test", None, 0).write(run / SET_ASIDE_PATH)
    assert "a tenth of each class" in divide(pack, init=run).said
    with pytest.raises(UserError, match="validation_split: expected no image of split 'test'"):
        divide(pack, validation_split=str(run / SET_ASIDE_PATH))


def test_a_start_that_would_leave_a_class_no_label_is_no_mistake(pack: Pack, tmp_path: Path) -> None:
    known = training_labels(pack, "train", None, 0)
    known.of_rows(known.row[known.label == 0]).write(tmp_path / SET_ASIDE_PATH)
    of_pack(tmp_path, pack)
    assert str(tmp_path) not in divide(pack, init=tmp_path).said


def test_a_share_that_leaves_a_class_without_a_label_is_refused(pack: Pack) -> None:
    with pytest.raises(UserError, match=r"found 20 of '0', and a share of 0.99 takes all of them; lower it"):
        divide(pack, validation_share=0.99)
    assert per_class(divide(pack, validation_share=0.97).training) == [1, 1]
    table = training_labels(pack, "train", None, 0)
    path = pack.path.parent / "ones.parquet"
    table.of_rows(table.row[table.label == 1]).write(path)
    with pytest.raises(UserError, match="none left of '1'; set less aside"):
        divide(pack, table, validation_split=str(path))


def test_what_a_network_guessed_is_not_measured_on(pack: Pack) -> None:
    true = training_labels(pack, "train", 2, 0)
    pool = pack.split("held").row_ranges[0]
    rows = np.arange(*pool)
    guessed = LabelTable.of(rows, np.zeros(len(rows), np.int64), 2, 0.9, "pseudo", 1)
    found = divide(pack, true.join(guessed), validation_share=0.5)
    assert found.validation is not None
    assert set(found.validation.source) == {"true"}
    assert per_class(found.validation) == [1, 1]
    assert divide(pack, true.join(guessed)).said.startswith("none, since a class has fewer than 20 labels (2")


def test_images_set_aside_and_copies_of_them_are_not_unlabelled_images_either(pack: Pack) -> None:
    found = divide(pack)
    assert found.validation is not None
    held = pack.pool(pack.splits).labeled_by(found.validation)
    pool = unlabeled_images(pack, ("train", "unlabeled"), found)
    assert len(pool) == 2 * (2 * NUM_TRAIN - len(held))
    assert find_leak(pack, pool.rows(np.arange(len(pool))), held) is None
    assert len(unlabeled_images(pack, ("unlabeled",))) == 2 * NUM_TRAIN
    with_copies = training_labels(pack, "train", None, 0).join(training_labels(pack, "unlabeled", None, 0))
    twice = divide(pack, with_copies, validation_share=0.1)
    assert twice.validation is not None
    held = pack.pool(pack.splits).labeled_by(twice.validation)
    assert find_leak(pack, twice.training.row, held) is None
    assert "copies of them are not trained on" in twice.said


def test_labelled_images_and_a_part_of_the_others_can_be_left_out(pack: Pack) -> None:
    def rows_of(*splits: str, **options: Any) -> set[int]:
        images = unlabeled_images(pack, splits, found, **options)
        return set(images.rows(np.arange(len(images))).tolist())

    found = divide(pack, training_labels(pack, "train", 5, 0), validation_share=0.2)
    everything, known = rows_of("train"), set(found.training.row.tolist())
    assert len(everything) == 2 * NUM_TRAIN - 2
    assert rows_of("train", with_labeled=False) == everything - known
    half, quarter = (rows_of("train", "held", share=share, seed=1) for share in (0.5, 0.25))
    assert quarter < half < rows_of("train", "held")
    assert len(half) == round((len(everything) + 2 * NUM_HELD) / 2)
    assert half != rows_of("train", "held", share=0.5, seed=2)
    assert len(rows_of("train", share=1e-9)) == 1
    found = divide(pack, validation_split="held")
    with pytest.raises(UserError, match="expected some in train, found only images that are labelled"):
        rows_of("train", with_labeled=False)


def test_copies_of_what_is_held_out_have_no_label_any_more(digits_folder: Path, tmp_path: Path) -> None:
    for label in "01":
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number, source in enumerate(sorted((digits_folder / "train" / label).glob("*.jpg"))[:4]):
            for copy in "ab":
                (folder / f"{number}{copy}.jpg").write_bytes(source.read_bytes())
    pack_dataset(PackOptions(parse_splits([f"train={tmp_path / 'images'}"]), tmp_path / "pack", workers=1))
    split = open_pack(tmp_path / "pack").split("train")
    held, known = hold_out(split, split.labels(), 0.2, 0)
    left = split.take(np.flatnonzero(known >= 0))
    hashes = split.pack.columns.content_hash
    inside, outside = (
        {bytes(hashes[row]) for row in part.rows(np.arange(len(part)))} for part in (held, left)
    )
    assert len(held) == 4
    assert len(inside) >= 2
    assert not inside & outside
    assert len(left) == 16 - 2 * len(inside)
