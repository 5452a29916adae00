"""Leaks: images that a run both learns from and is measured on. They are errors without `--allow-leak`.

`loaders.packs.labels.leaks` compares the images. This module finds the labels that a run, and the runs that
it started from, were trained on, and makes the texts for config.json (`leaks`) and the screen.

Reading images without their labels is no leak: a method for unlabelled images may read those of the test
split too (transductive learning); a note on the screen then says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.nets.foreign import timm_config
from engine.train.distributed import rank
from engine.train.run_folder import read_run
from loaders.classification import chosen_labels
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, Split, open_pack
from loaders.packs.labels.leaks import check_leak, find_leak
from loaders.packs.labels.subsample import training_labels
from loaders.packs.labels.validation import SET_ASIDE_PATH, Division

if TYPE_CHECKING:
    from engine.train.classifier_config import ClassifierConfig
    from engine.train.run_config import RunConfig


@dataclass(frozen=True)
class Account:
    """Texts about the images that training and evaluation share.

    Attributes:
        leaks: one text for each leak that the user allowed.
        notes: other remarks, such as on a leak into validation images that the user did not choose.
        validation: says which images the run is validated on; "" for a run without labels.
    """

    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    validation: str = ""

    def describe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a configuration, with the entry `leaks` if there are leaks."""
        return {**config, "leaks": list(self.leaks)} if self.leaks else dict(config)

    def say(self) -> None:
        """Print each text on a line of stderr, on rank 0: validation first, then leaks and notes."""
        if rank() == 0:
            said = (f"validation: {self.validation}",) if self.validation else ()
            for text in (*said, *(f"allowed by --allow-leak: {leak}" for leak in self.leaks), *self.notes):
                print(text, file=sys.stderr)


def account(config: ClassifierConfig, division: Division | None = None) -> Account:
    """Look for test and validation images with labels that the run, or one that it starts from, learns from.

    Args:
        config: options of the run.
        division: division of the run's labels into training and validation; None without validation.

    Raises:
        UserError: there is a leak, and leaks are not allowed. A leak from the runs behind `config.init` into
            validation images that the user did not choose is only noted.
    """
    held = Account() if division is None else _validation_account(config, division)
    tested = _test_account(config)
    return Account(held.leaks + tested.leaks, held.notes + tested.notes, held.validation)


def _validation_account(config: ClassifierConfig, division: Division) -> Account:
    """Note or refuse validation images whose labels, or those of copies, a run behind `config.init` learned.

    Raises:
        UserError: the user chose such images, and leaks are not allowed.
    """
    if division.validation is None:
        return Account(validation=division.said)
    pack = open_pack(config.pack)
    held = pack.pool(pack.splits).labeled_by(division.validation)
    leaks, notes = division.leaks, tuple[str, ...]()
    for run, behind in _runs_behind(config.init):
        try:
            other, labels = _labels_of(behind)
            rows = not_set_aside(run, labels)
        except (UserError, TypeError, ValueError):
            continue  # with a test split, `check_run` notes labels that cannot be read
        leak = find_leak(other, rows, held)
        if leak is None:
            continue
        text = f"labels of {run}: {leak.num_rows + leak.num_copies:,} of the {len(held):,} validation images"
        if config.allow_leak:
            leaks += (text,)
        elif config.validation_split is None and config.validation_share is None:
            notes += (f"{text}; their accuracy will be too high, choose others with --validation-split",)
        else:
            raise UserError(
                f"validation: expected images that no run behind --init was trained on, found {text}; use "
                "the same for all runs (--validation-split TABLE.parquet), or allow it with --allow-leak"
            )
    return Account(leaks, notes, division.said)


def not_set_aside(run: Path, labels: LabelTable) -> NDArray[np.int64]:
    """Return the rows of `labels` without those that the run set aside for validation."""
    path = run / SET_ASIDE_PATH
    return np.setdiff1d(labels.row, LabelTable.read(path).row) if path.is_file() else labels.row


def _test_account(config: ClassifierConfig) -> Account:
    if not config.test_split:
        return Account()
    pack = open_pack(config.pack)
    measured = pack.split(config.test_split)
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if config.allow_leak:  # otherwise `chosen_labels` has already refused leaks
        leaks = check_leak(pack, chosen_labels(pack, config).row, measured, True)
    behind = check_run(config.init, measured, config.allow_leak)
    unlabeled = getattr(config, "unlabeled_splits", None)
    if unlabeled is not None:
        notes = describe_shared(pack.pool(unlabeled), measured)
    return Account(leaks + behind.leaks, behind.notes + notes)


def account_of_probe(config: RunConfig) -> Account:
    """Look for leaks between the split that the online probe learns from and the one it is measured on.

    Raises:
        UserError: there is a leak, and leaks are not allowed.
    """
    pack = open_pack(config.pack, config.loader.store)
    if len(config.probe_splits) == 1:
        return Account()  # the parts of one split share nothing; see `probe_images`
    bank, measured = (pack.split(name) for name in config.probe_splits)
    rows = bank.rows(np.arange(len(bank)))
    leaks = check_leak(pack, rows, measured, config.allow_leak, "probe_splits")
    split = getattr(config, "split", None)  # only recipes that learn without labels have this option
    return Account(leaks, describe_shared(pack.split(split), measured) if split is not None else ())


def describe_shared(unlabeled: Split, measured: Split) -> tuple[str, ...]:
    """Return a text on the unlabelled images that occur in the split to measure on, if there are any."""
    rows = unlabeled.rows(np.arange(len(unlabeled)))
    leak = find_leak(unlabeled.pack, rows, measured)
    return () if leak is None else (f"unlabelled images: {leak}; their true labels are not read",)


def check_run(path: Path | None, measured: Split, allow: bool) -> Account:
    """Look for leaks between a split and the labels of a run and of the runs that it started from.

    Args:
        path: run folder, or a checkpoint or file in it; None for no run.
        measured: the split to measure on.
        allow: return leaks instead of raising an error.

    Raises:
        UserError: there is a leak, and leaks are not allowed.
    """
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for run, config in _runs_behind(path):
        try:
            pack, labels = _labels_of(config)
        except (UserError, TypeError, ValueError) as error:
            notes += (f"{run}: its labels cannot be compared with split {measured.name!r} ({error})",)
            continue
        leaks += check_leak(pack, labels.row, measured, allow, f"labels of {run}")
    return Account(leaks, notes)


def _runs_behind(path: Path | None) -> Iterator[tuple[Path, Mapping[str, Any] | None]]:
    """Yield the run that a path is in, the run that this one started from, and so on, with their options.

    Runs without labels are left out. A run whose folder is gone comes last, with None for its options.
    """
    seen: set[Path] = set()
    while path is not None:
        run = next((p for p in (path, *path.parents[:2]) if (p / "config.json").is_file()), None)
        if run is None or run.resolve() in seen or timm_config(run) is not None:  # weights of other projects
            return
        seen.add(run.resolve())
        config = read_run(run)["config"]
        if isinstance(config.get("labeled_split", config.get("train_split")), str):
            yield run, config
        start = config.get("init")
        path = Path(start) if isinstance(start, str) and start else None
        if path is not None and not path.exists() and not str(start).startswith("timm:"):
            yield path, None


def _labels_of(config: Mapping[str, Any] | None) -> tuple[Pack, LabelTable]:
    """Return the pack and the labels that the configuration of a run names.

    In configurations of recipes/transfer.py, the field of the split is `train_split`.

    Raises:
        UserError: the run, the pack, the split or a label table is missing or cannot be used.
    """
    if config is None:
        raise UserError("no run is there")
    pack = open_pack(str(config.get("pack")))
    split, seed = config.get("labeled_split", config.get("train_split")), config.get("label_seed")
    extra = [Path(path) for path in config.get("extra_labels", ())]
    chosen = (config.get("labels_per_class"), config.get("seed", 0) if seed is None else seed)
    return pack, training_labels(pack, split, *chosen, extra)
