"""Images that a run both learns from and is measured on: refused, or named if `--allow-leak` is given.

`loaders.packs.labels.leaks` finds them. This module finds the labels behind a run that is measured or from
which another run starts, and makes the texts for config.json (`leaks`) and the screen.

Images without labels are no leak: methods that read unlabelled images may read those of the test split too
(transductive learning), and one line says so.
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
    """What training and measurement have in common.

    Attributes:
        leaks: shared labels or images that the user allowed; one text each.
        notes: facts that are no leak but that the user should know.
        validation: a text that says on what the run is measured as it trains; "" for a run without labels.
    """

    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    validation: str = ""

    def describe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration in JSON types, with the leaks that were allowed, if any."""
        return {**config, "leaks": list(self.leaks)} if self.leaks else dict(config)

    def say(self) -> None:
        """Print a line for each on rank 0; the line on validation comes first."""
        if rank() == 0:
            said = (f"validation: {self.validation}",) if self.validation else ()
            for text in (*said, *(f"allowed by --allow-leak: {leak}" for leak in self.leaks), *self.notes):
                print(text, file=sys.stderr)


def account(config: ClassifierConfig, division: Division | None = None) -> Account:
    """Compare the training images of a recipe with labels with its test split and its validation images.

    Args:
        config: options of the run.
        division: how the run's labels are divided.

    Raises:
        UserError: they share labels, here or in the run that it starts from, and that is not allowed.
    """
    held = Account() if division is None else _validation_account(config, division)
    tested = _test_account(config)
    return Account(held.leaks + tested.leaks, held.notes + tested.notes, held.validation)


def _validation_account(config: ClassifierConfig, division: Division) -> Account:
    """Compare validation images with the labels on which the runs behind the start were trained."""
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
            continue  # reported by the comparison with the test split
        leak = find_leak(other, rows, held)
        if leak is None:
            continue
        text = f"labels of {run}: {leak.num_rows + leak.num_copies:,} of the {len(held):,} validation images"
        if config.allow_leak:
            leaks += (text,)
        elif config.validation_split is None and config.validation_share is None:
            notes += (f"{text}; their accuracy will be too high, choose others by --validation-split",)
        else:
            raise UserError(
                f"validation: expected images that no run behind --init was trained on, found {text}; take "
                "the same for all runs (--validation-split TABLE.parquet), or allow it by --allow-leak"
            )
    return Account(leaks, notes, division.said)


def not_set_aside(run: Path, labels: LabelTable) -> NDArray[np.int64]:
    """Return the rows of the labels on which a run was trained."""
    path = run / SET_ASIDE_PATH
    return np.setdiff1d(labels.row, LabelTable.read(path).row) if path.is_file() else labels.row


def _test_account(config: ClassifierConfig) -> Account:
    if not config.test_split:
        return Account()
    pack = open_pack(config.pack)
    measured = pack.split(config.test_split)
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if config.allow_leak:  # else nothing is shared, since `chosen_labels` refused it
        leaks = check_leak(pack, chosen_labels(pack, config).row, measured, True)
    behind = check_run(config.init, measured, config.allow_leak)
    unlabeled = getattr(config, "unlabeled_splits", None)
    if unlabeled is not None:
        notes = describe_shared(pack.pool(unlabeled), measured)
    return Account(leaks + behind.leaks, behind.notes + notes)


def account_of_probe(config: RunConfig) -> Account:
    """Compare the split from which the online probe learns with the one on which it is measured.

    Raises:
        UserError: they share images, and that is not allowed.
    """
    pack = open_pack(config.pack, config.loader.store)
    if len(config.probe_splits) == 1:
        return Account()  # the parts of one split share nothing, see `probe_images`
    bank, measured = (pack.split(name) for name in config.probe_splits)
    rows = bank.rows(np.arange(len(bank)))
    leaks = check_leak(pack, rows, measured, config.allow_leak, "probe_splits")
    split = getattr(config, "split", None)  # of a recipe that learns from images without their labels
    return Account(leaks, describe_shared(pack.split(split), measured) if split is not None else ())


def describe_shared(unlabeled: Split, measured: Split) -> tuple[str, ...]:
    """Say what unlabelled images share with the split to measure on; empty if nothing."""
    rows = unlabeled.rows(np.arange(len(unlabeled)))
    leak = find_leak(unlabeled.pack, rows, measured)
    return () if leak is None else (f"unlabelled images: {leak}; their true labels are not read",)


def check_run(path: Path | None, measured: Split, allow: bool) -> Account:
    """Compare the labels on which a run, and the runs before it, were trained with a split.

    Args:
        path: run folder, a checkpoint or a file in one; None for no run.
        measured: the split to measure on.
        allow: name what is shared instead of refusing it.

    Raises:
        UserError: they share labels, and that is not allowed.
    """
    leaks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for run, config in _runs_behind(path):
        try:
            pack, labels = _labels_of(config)
        except (UserError, TypeError, ValueError) as error:
            notes += (f"{run}: its labels cannot be held against split {measured.name!r} ({error})",)
            continue
        leaks += check_leak(pack, labels.row, measured, allow, f"labels of {run}")
    return Account(leaks, notes)


def _runs_behind(path: Path | None) -> Iterator[tuple[Path, Mapping[str, Any] | None]]:
    """Yield the run of a start, and the runs before it, that were trained on labels; None: gone."""
    seen: set[Path] = set()
    while path is not None:
        run = next((p for p in (path, *path.parents[:2]) if (p / "config.json").is_file()), None)
        if run is None or run.resolve() in seen or timm_config(run) is not None:  # weights of others
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
    """Return the labels that the configuration of a run names; `transfer` has its own field names.

    Raises:
        UserError: the run, the pack or a table is gone.
    """
    if config is None:
        raise UserError("no run is there")
    pack = open_pack(str(config.get("pack")))
    split, seed = config.get("labeled_split", config.get("train_split")), config.get("label_seed")
    extra = [Path(path) for path in config.get("extra_labels", ())]
    chosen = (config.get("labels_per_class"), config.get("seed", 0) if seed is None else seed)
    return pack, training_labels(pack, split, *chosen, extra)
