"""Divide labels into those that validate a run while it trains and those to train on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.labels.leaks import Leak, check_leak, find_leak, shared_rows
from loaders.packs.labels.subsample import few_labels, has_labels, read_label_table, validation_part
from loaders.packs.labels.tables import LabelTable
from loaders.packs.pack import Pack, Split

SET_ASIDE_PATH = "labels/validation.parquet"
"""Path, in a run folder, of the labels that were set aside."""
USUAL_SPLITS = ("val", "validation")
USUAL_SHARE, FEWEST = 0.1, 20
_GUESSED = ("pseudo", "guess")  # sources of labels that come from a network


class ValidationFields(Protocol):
    """The fields of a configuration that decide what a run is validated on while it trains."""

    @property
    def labeled_split(self) -> str:
        """Split whose true labels are trained on."""

    @property
    def test_split(self) -> str:
        """Split that the finished run is measured on; "" for none."""

    @property
    def label_seed(self) -> int:
        """Seed of the choice of labels to set aside."""

    @property
    def allow_leak(self) -> bool:
        """Whether training, validation and test may share images."""

    @property
    def init(self) -> Path | None:
        """Run, or other start, from which the weights come; None for random weights."""

    @property
    def validation_split(self) -> str | None:
        """Split or label table to measure on; "" for none, None for the default."""

    @property
    def validation_share(self) -> float | None:
        """Share of the training labels to set aside; 0 for none, None for the default."""


@dataclass(frozen=True)
class Division:
    """The labels of a run, divided.

    Attributes:
        validation: labels to measure on while training; None if the run is not validated.
        set_aside: whether the validation labels come from a share, a label table or the run of `init`, not
            from a split. If so, their images and copies of these are never trained on, with or without
            labels, and the run folder keeps the table.
        said: text that says where the validation labels come from.
        leaks: descriptions of images that training, validation and test share, if that is allowed.
    """

    training: LabelTable
    validation: LabelTable | None
    set_aside: bool
    said: str
    leaks: tuple[str, ...] = ()


def divide_labels(pack: Pack, labels: LabelTable, fields: ValidationFields) -> Division:
    """Divide labels into those to train on and those to measure on while training.

    Args:
        labels: all labels that may be trained on.

    Raises:
        UserError: a class would have no label left to train on, the share is not in [0, 1), the split or
            table to measure on has no labels or does not fit, or training, validation and test share images
            and may not.
    """
    split, share = fields.validation_split, fields.validation_share
    if split and split.endswith(".parquet"):
        held = read_label_table(pack, Path(split))
        if not len(held):
            raise UserError(f"validation_split: expected labels in {split}, found an empty table")
        leaks = _check_tested(pack, held, fields)
        return replace(_without(pack, labels, held, f"the {len(held):,} images of {split}"), leaks=leaks)
    if split:
        return _split(pack, labels, split, fields)
    if share:
        held = _share(pack, labels, share, fields.label_seed)
        return _without(pack, labels, held, f"{_aside(held)}, {share:.3g} of each class")
    if split == "" or share == 0.0:
        return Division(labels, None, False, "none, as asked for")
    return _by_default(pack, labels, fields)


def _by_default(pack: Pack, labels: LabelTable, fields: ValidationFields) -> Division:
    inherited = _inherited(pack, labels, fields)
    if inherited is not None:
        return inherited
    for name in USUAL_SPLITS:
        others = (fields.test_split, fields.labeled_split)
        if name in pack.splits and name not in others and has_labels(pack, name):
            leak = find_leak(pack, labels.row, pack.split(name))
            if leak is not None:  # the user did not ask for this split, so a leak is not the user's mistake
                return Division(labels, None, False, f"none, since labels are {leak}")
            tested = _tested(pack, few_labels(pack.split(name), None, 0), fields)
            if tested is not None:
                return Division(labels, None, False, f"none, since images of {name!r} are {tested}")
            return _split(pack, labels, name, fields)
    counts = np.bincount(labels.label[are_true(labels)], minlength=labels.num_classes)
    scarcest = int(counts.argmin())
    if counts[scarcest] < FEWEST:
        found = f"{counts[scarcest]} of {pack.classes[scarcest]!r}"
        return Division(labels, None, False, f"none, since a class has fewer than {FEWEST} labels ({found})")
    held = _share(pack, labels, USUAL_SHARE, fields.label_seed)
    return _without(pack, labels, held, f"{_aside(held)}, a tenth of each class")


def _aside(held: LabelTable) -> str:
    """Return a text that says how many labels are set aside, and how many points of accuracy one is worth."""
    return f"{len(held):,} labels set aside (each is {100 / max(1, len(held)):.3g} points)"


def _inherited(pack: Pack, labels: LabelTable, fields: ValidationFields) -> Division | None:
    """Set aside the labels that the run of --init set aside; None if they are unusable or of test images."""
    if fields.init is None or not _is_of(pack, fields.init):
        return None
    path = fields.init / SET_ASIDE_PATH
    try:
        held = read_label_table(pack, path)
        if _tested(pack, held, fields) is not None:
            return None
        return _without(pack, labels, held, f"the {len(held):,} images that {path} set aside")
    except UserError:  # no table, or no usable one, which is not the user's mistake
        return None


def _is_of(pack: Pack, run: Path) -> bool:
    """Return whether a run was made on this pack, according to its config.json."""
    try:
        named = str(parse_json((run / "config.json").read_bytes())["config"]["pack"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return named == str(pack.path) or Path(named).resolve() == Path(str(pack.path)).resolve()


def are_true(labels: LabelTable) -> NDArray[np.bool_]:
    """Return bool [M], whether a label is not the guess of a network."""
    return ~np.isin(labels.source.astype(str), _GUESSED)


def _split(pack: Pack, labels: LabelTable, name: str, fields: ValidationFields) -> Division:
    split = pack.split(name)
    if name == fields.test_split:
        raise UserError(
            f"validation_split: expected a split other than --test-split, found {name!r} for both; the test "
            "accuracy of weights chosen on it would be too high"
        )
    pack.manifest.require_labels(name, "validation_split")
    held = few_labels(split, None, 0)
    leaks = check_leak(pack, labels.row, split, fields.allow_leak)
    leaks += _check_tested(pack, held, fields)
    return Division(labels, held, False, f"{len(held):,} images of split {name!r}", leaks)


def _tested(pack: Pack, held: LabelTable, fields: ValidationFields) -> Leak | None:
    """Return what validation and test images share, which makes test accuracy too high; None if nothing."""
    return find_leak(pack, held.row, pack.split(fields.test_split)) if fields.test_split else None


def _check_tested(pack: Pack, held: LabelTable, fields: ValidationFields) -> tuple[str, ...]:
    if not fields.test_split:
        return ()
    return check_leak(pack, held.row, pack.split(fields.test_split), fields.allow_leak, "validation_split")


def _share(pack: Pack, labels: LabelTable, share: float, seed: int) -> LabelTable:
    """Choose a share of the labels of every class, leaving out guesses of a network."""
    known = np.where(are_true(labels), labels.label, -1)
    for label, count in zip(*np.unique(known[known >= 0], return_counts=True), strict=True):
        if int(count * share + 0.5) >= count > 1:
            raise UserError(
                f"validation_share: expected to leave a label of each class to train on, found {count} of "
                f"{pack.classes[int(label)]!r}, and a share of {share:.3g} takes all of them; lower it"
            )
    return labels.of_rows(labels.row[validation_part(known, share, seed)])


def _without(pack: Pack, labels: LabelTable, held: LabelTable, said: str) -> Division:
    """Remove labels set aside, and labels of copies of their images, from the training labels."""
    rest = apart(pack, labels.row, held)
    training = labels.of_rows(rest)
    lost = np.setdiff1d(labels.label, training.label)
    if len(lost):
        raise UserError(
            f"validation: expected to leave a label of each class to train on, found none left of "
            f"{pack.classes[int(lost[0])]!r}; set less aside"
        )
    num_copies = len(labels) - len(training) - int(np.isin(labels.row, held.row).sum())
    copies = f"; {num_copies:,} copies of them are not trained on" if num_copies else ""
    return Division(training, pack.signed(held), True, said + copies)


def hold_out(
    split: Split, known: NDArray[np.int64], share: float, seed: int
) -> tuple[Split, NDArray[np.int64]]:
    """Set a share of every class aside.

    Args:
        split: N images.
        known: int64 [N], their labels; -1 for none.
        share: share of each class to set aside, see `validation_part`.

    Returns:
        The images set aside, and int64 [N], `known` with -1 for the images set aside and their copies.
    """
    held = split.take(np.flatnonzero(validation_part(known, share, seed)))
    own, copies = shared_rows(split.pack, split.rows(np.arange(len(split))), held)
    return held, np.where(own | copies, -1, known)


def apart(pack: Pack, rows: NDArray[np.int64], held: LabelTable) -> NDArray[np.int64]:
    """Return those of `rows`, int64 [K], that are neither in `held` nor copies of images in it."""
    own, copies = shared_rows(pack, rows, pack.pool(pack.splits).labeled_by(held))
    return rows[~(own | copies)]
