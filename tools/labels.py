"""Label tables of a pack: import, export, choose a few per class, divide, leave out a test set, compare.

A label table is a small parquet file in the folder `labels` of a pack. No command changes a shard.

Examples:
    python tools/labels.py subsample packs/mine --split train --per-class 4 --seed 0 --name few4
    python tools/labels.py divide packs/mine --split train --validation 0.1 --name tenth
    python tools/labels.py import packs/mine --file labels.csv --name mine --new-classes
    python tools/labels.py import packs/unlabelled --classes cat dog --file bought.csv --name bought
    python tools/labels.py exclude packs/mine --split test --name known
    python tools/labels.py export packs/mine --file labels.csv --name few4
    python tools/labels.py compare packs/mine --first true --second mine

Recipes choose a few true labels of each class by `--labels-per-class`. They add other tables to these by
`--extra-labels packs/mine/labels/mine.parquet`; with `--labeled-split ""` as well, they train on such tables
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engine.train.run_config import PackConfig
from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_exists, check_folder
from loaders.common.program import Positional, check_command_line, command_line, subcommand
from loaders.packs.manifest import TRUE_LABELS


@dataclass(frozen=True)
class _OfPack(PackConfig):
    pack: Positional[Path]
    """Folder of the pack."""


@dataclass(frozen=True)
class Import(_OfPack):
    """Make a label table from a list (.csv, .tsv, .txt, .jsonl or .parquet) or an array (.npy, .pt or .pth).

    A list has for each image its key, row or file name (with enough of the path to be unique) and its label.
    """

    file: Path | None = None
    """File with the labels: numbers or class names; -1 or an empty cell means no label. Leave it out to set
    only --classes."""
    name: str | None = None
    """Name of the new table."""
    split: str | None = None
    """Split of the labels: an array has one label for each image of the split, and the names of a list are
    looked up in the split. The whole pack by default."""
    source: str = "import"
    """Where the labels come from; recorded in the table."""
    classes: tuple[str, ...] = ()
    """Names of the classes of a pack that was made without labels, beginning with label 0; or a text file
    with one name per line. They cannot be changed later."""
    new_classes: bool = False
    """Add the classes of the file that the pack lacks, after its present classes. They stay in the pack."""

    def check_places(self) -> None:
        """Also refuse a missing --file."""
        super().check_places()
        if self.file is not None:
            check_exists(self.file, "file", "a file of labels")

    def __post_init__(self) -> None:
        """Refuse options that are incomplete or contradict each other."""
        if (self.file is None) != (self.name is None) or (self.file is None and not self.classes):
            raise UserError(
                "import: expected --file and --name, --classes, or all three; give what is missing"
            )
        if self.new_classes and (self.classes or self.file is None):
            raise UserError(
                "new_classes: expected --file without --classes, whose names it takes; change one"
            )


@dataclass(frozen=True)
class Export(_OfPack):
    """Write a label table as .csv (row, key, label, class), or as .npy, .pt or .pth (int64, -1: no label)."""

    file: Path
    """File to write; it must not exist."""
    name: str = TRUE_LABELS
    """Table to write."""
    split: str | None = None
    """Split whose labels are written; those of the whole pack by default."""

    def __post_init__(self) -> None:
        """Refuse a file that cannot be written."""
        check_folder(self.file.parent, "file")


@dataclass(frozen=True)
class Subsample(_OfPack):
    """Make a label table with a few labels of each class, as for benchmarks of semi-supervised learning.

    With the same seed, a smaller choice is part of every larger one.
    """

    split: str
    """Split to choose from."""
    per_class: Count
    """Labels to keep of each class; all of a class that has fewer."""
    name: str
    """Name of the new table."""
    seed: int = 0
    """Seed of the choice."""
    table: str = TRUE_LABELS
    """Table to choose from."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self)


@dataclass(frozen=True)
class Divide(_OfPack):
    """Divide the labels of a split, class by class, into tables for training, validation and test.

    All copies of an image go into the same table.
    """

    split: str
    """Split to divide."""
    validation: float
    """Share of each class for validation, between 0 and 1."""
    name: str
    """Names of the new tables: NAME-train and NAME-val, and with --test also NAME-test."""
    test: float = 0.0
    """Share of each class for a test set, to be measured on only once; 0 for none."""
    near: bool = False
    """Also keep images together that look the same but have different bytes; decodes every labelled image."""
    seed: int = 0
    """Seed of the division."""
    table: str = TRUE_LABELS
    """Table to divide."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and shares that leave nothing to train on."""
        check_numbers(self)
        if not 0 < self.validation < 1:
            raise UserError(f"validation: expected a share between 0 and 1, found {self.validation}")
        if self.validation + self.test >= 1:
            raise UserError(
                f"test: expected less than {1 - self.validation:g}, so that some labels are left to train "
                f"on, found {self.test}; lower a share"
            )


@dataclass(frozen=True)
class Exclude(_OfPack):
    """Make a label table without the rows of a test split and without copies of its images."""

    split: str
    """Split whose images must not be trained on, such as test."""
    name: str
    """Name of the new table."""
    table: str = TRUE_LABELS
    """Table to take the labels from."""


@dataclass(frozen=True)
class Compare(_OfPack):
    """Compare two tables: how many labels agree, how many differ, how many are only in one of them."""

    first: str
    """Name of one table."""
    second: str
    """Name of the other table."""


Command = (
    Annotated[Import, subcommand("import")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Subsample, subcommand("subsample")]
    | Annotated[Divide, subcommand("divide")]
    | Annotated[Exclude, subcommand("exclude")]
    | Annotated[Compare, subcommand("compare")]
)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Command, __doc__)


import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from loaders.common.cores import available_cores
from loaders.common.files import check_file
from loaders.common.next_step import say_next
from loaders.common.notice import tell
from loaders.common.tables import print_table
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.labels.class_names import class_names, write_class_names
from loaders.packs.labels.division import divide, joined_groups, scarce_note
from loaders.packs.labels.files import export_labels, new_class_names, read_label_file
from loaders.packs.labels.leaks import shared_rows
from loaders.packs.labels.subsample import read_label_table, subsample_per_class, tell_scarce
from loaders.packs.labels.tables import label_table_path
from tools.command.first_training import say_training_on


def main() -> None:
    """Parse the command line and run the command."""
    command = command_line(Command, __doc__)
    pack = open_pack(command.pack)
    if isinstance(command, Import):
        _import(pack, command)
    elif isinstance(command, Export):
        labels = _read(pack, command.name).dense(len(pack))
        export_labels(command.file, pack, _rows_of(pack, command.split), labels)
        print(f"{command.file} written")
        name = "edited" if command.name == TRUE_LABELS else f"{command.name}-edited"
        free, number = name, 1
        while (pack.path / label_table_path(free)).exists():
            number += 1
            free = f"{name}-{number}"
        say_next("tools/labels.py", "import", command.pack, "--file", command.file, "--name", free)
    elif isinstance(command, Subsample):
        split, table = pack.split(command.split), _read(pack, command.table)
        known = split.labels(table)
        chosen = split.rows(subsample_per_class(known, command.per_class, command.seed))
        tell_scarce(known, command.per_class, pack.classes)
        _write(pack, command.name, table.of_rows(chosen))
        say_training_on(pack, command.pack, command.name, table.of_rows(chosen))
    elif isinstance(command, Divide):
        _divide(pack, command)
    elif isinstance(command, Exclude):
        table = _read(pack, command.table)
        own, copies = shared_rows(pack, table.row, pack.split(command.split))
        kept = table.of_rows(table.row[~(own | copies)])
        _write(pack, command.name, kept)
        print(f"left out: {own.sum():,} rows and {copies.sum():,} copies of split {command.split!r}")
        say_training_on(pack, command.pack, command.name, kept, command.split)
    else:
        _compare(pack, command)


def _rows_of(pack: Pack, split: str | None) -> list[tuple[int, int]]:
    return [(0, len(pack))] if split is None else list(pack.split(split).row_ranges)


def _read(pack: Pack, name: str) -> LabelTable:
    return read_label_table(pack, pack.path / label_table_path(name))


def _free_path(pack: Pack, name: str) -> Path:
    """Return the path for a new table.

    Raises:
        UserError: the name is not plain, the path cannot be a file, or the table exists.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"--name {name!r}: expected a plain name such as few4")
    path = pack.path / label_table_path(name)
    check_file(path, "name", writable=False)  # in a read-only pack, advice to change --name would not help
    if path.exists():
        raise UserError(f"{path} exists: choose another --name, or remove it")
    return path


def _write(pack: Pack, name: str, table: LabelTable) -> None:
    path = _free_path(pack, name)
    pack.signed(table).write(path)
    print(f"{path}: {len(table):,} labels")


def _import(pack: Pack, command: Import) -> None:
    """Import labels or class names; everything is checked first, so a mistake leaves nothing half-written."""
    names = class_names(command.classes) if command.classes else ()
    if names and pack.classes and names != pack.classes:
        raise UserError(
            f"classes: expected those of the pack, {_shown(pack.classes)}, found {_shown(names)}; leave out "
            "--classes"
        )
    added = new_class_names(command.file, pack.classes) if command.new_classes and command.file else ()
    if added and pack.is_multi_label:
        raise UserError("new_classes: expected a pack with one label per image, found several; leave it out")
    all_names = (pack.classes or names) + added
    is_new, pack.classes = all_names != pack.classes, all_names
    if command.file is not None and command.name is not None:
        table = read_label_file(command.file, pack, _rows_of(pack, command.split), command.source)
        if not len(table):
            raise UserError(f"{command.file}: expected at least one label, found none; check its columns")
        _free_path(pack, command.name)
    if is_new:
        write_class_names(pack.path, all_names)
    if added:
        print(f"{pack.path}: new classes {_shown(added)}; {len(all_names)} in all")
    if command.classes:
        print(f"{pack.path}: {len(pack.classes)} classes, {_shown(pack.classes)}")
    if command.name is None:
        say_next("tools/labels.py", "import", command.pack, "--file", "LABELS.csv", "--name", "mine")
        return
    _write(pack, command.name, table)
    say_training_on(pack, command.pack, command.name, table)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _divide(pack: Pack, command: Divide) -> None:
    split, table = pack.split(command.split), _read(pack, command.table)
    labels = split.labels(table)
    known = np.flatnonzero(labels >= 0)
    names, shares = ["train", "val"], [1 - command.validation - command.test, command.validation]
    if command.test:
        names, shares = [*names, "test"], [*shares, command.test]
    if len(known) < len(names):
        raise UserError(
            f"{command.split}: expected at least {len(names)} labelled images, found {len(known)}; give a "
            "split or a table with more labels"
        )
    rows = split.rows(known)
    hashes = pack.columns.content_hash[rows]
    pairs = np.zeros((0, 2), np.int64)
    if command.near:
        from loaders.packs.findings import near_pairs, perceptual_hashes  # imports the decoders

        looks = perceptual_hashes(pack, available_cores(), rows)
        pairs = np.array(list(near_pairs(looks)), np.int64).reshape(-1, 2)
    groups = joined_groups(len(rows), hashes, pairs)
    parts = divide(labels[known], groups, hashes[:, 0], shares, command.seed)
    if (scarce := scarce_note(labels[known], parts, names, pack.classes)) is not None:
        tell(f"note: {scarce}")
    for name in names:
        _free_path(pack, f"{command.name}-{name}")  # check all names before writing any table
    for number, name in enumerate(names):
        _write(pack, f"{command.name}-{name}", table.of_rows(rows[parts == number]))
    held_out = pack.path / label_table_path(f"{command.name}-val")
    learnt = table.of_rows(rows[parts == 0])
    more = ("--validation-split", held_out)
    say_training_on(pack, command.pack, f"{command.name}-train", learnt, "test", *more)


def _compare(pack: Pack, command: Compare) -> None:
    a, b = (_read(pack, name).dense(len(pack)) for name in (command.first, command.second))
    both = (a >= 0) & (b >= 0)
    same = int((a[both] == b[both]).sum())
    console = Console()
    table = Table("labels", "count")
    for name, count in (
        (f"only in {command.first}", int(((a >= 0) & (b < 0)).sum())),
        (f"only in {command.second}", int(((a < 0) & (b >= 0)).sum())),
        ("in both, the same", same),
        ("in both, different", int(both.sum()) - same),
    ):
        table.add_row(name, f"{count:,}")
    print_table(console, table)
    if both.any():
        print(f"they agree on {same / int(both.sum()):.2%} of {int(both.sum()):,} images")
    for row in (both & (a != b)).nonzero()[0][:10].tolist():
        print(f"differs: {pack.key(row)}: {pack.classes[a[row]]} / {pack.classes[b[row]]}")
    say_training_on(pack, command.pack, command.second, _read(pack, command.second))


if __name__ == "__main__":
    run_command(main)
