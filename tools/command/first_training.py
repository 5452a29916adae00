"""The training to begin with on a pack, as the next command of what prepares one."""

from __future__ import annotations

from pathlib import Path

from loaders.common.next_step import say_next
from loaders.packs.manifest import read_manifest


def say_training(folder: Path, *table: object) -> None:
    """Name a first training: on labels where there are any, else without.

    Args:
        folder: of the pack.
        table: options that name a label table in place of the labels of a split.
    """
    splits = read_manifest(folder).splits
    labelled = [split.name for split in splits if split.num_labeled]
    begin: tuple[object, ...] = ("--pack", folder, "--preset", "auto", "--out", "runs/first")
    if not labelled and not table:
        say_next("recipes/vicreg.py", *begin, "--split", splits[0].name)
        return
    named = [] if table or "train" in labelled else ["--labeled-split", labelled[0]]
    tested = [] if "test" in labelled and "test" not in named else ["--test-split", ""]
    say_next("recipes/supervised.py", *begin, *named, *table, *tested)
