"""Labels of a pack in files that other programs read and write: .csv, .npy and .pt."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.packs.labels.tables import LabelTable
from loaders.packs.pack import Pack
from loaders.packs.sources.label_file import read_label_array
from loaders.packs.sources.list_rows import LIST_SUFFIXES, read_rows
from loaders.packs.sources.numbers import number_text
from loaders.packs.sources.table_columns import LABEL_COLUMNS

_ARRAY_SUFFIXES = (".pt", ".pth", ".npy")
_NAME_COLUMN = "class"
RowRanges = Sequence[tuple[int, int]]


def read_label_file(path: Path, pack: Pack, row_ranges: RowRanges, source: str) -> LabelTable:
    """Make a label table of a file.

    Args:
        path: an array with one label per row, or a list with the columns `key` or `row`, and `label`.
        pack: the pack that the labels belong to.
        row_ranges: the rows that an array labels, in order.
        source: who gave the labels.

    Raises:
        UserError: no such file, a wrong column, a row or a key that the pack does not have, a label out of
            range, or an array of another length.
    """
    if not path.is_file():
        raise UserError(f"no labels at {path}: there is no such file; check the path")
    suffix = path.suffix.lower()
    if suffix in _ARRAY_SUFFIXES:
        rows, labels = _array_rows(path, row_ranges)
    elif suffix in LIST_SUFFIXES:
        rows, labels = _list_rows(path, pack)
    else:
        raise UserError(f"{path}: expected labels in {', '.join(_ARRAY_SUFFIXES + LIST_SUFFIXES)}")
    known = labels >= 0
    if known.any() and not pack.classes:
        raise _no_classes(path)
    if len(labels) and (labels.max() >= len(pack.classes) or labels.min() < -1):
        wrong = labels.max() if labels.max() >= len(pack.classes) else labels.min()
        raise UserError(
            f"{path}: label {wrong} is out of range, expected 0 to {len(pack.classes) - 1}, or -1 for no "
            f"label"
        )
    return LabelTable.of(rows[known], labels[known], len(pack.classes), source=source)


def _array_rows(path: Path, row_ranges: RowRanges) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels = read_label_array(path)
    rows = np.concatenate([np.arange(first, stop) for first, stop in row_ranges])
    if len(labels) != len(rows):
        raise UserError(
            f"{path} has {len(labels)} labels, expected {len(rows)}, one per image; name a --split if it "
            f"labels only that"
        )
    return rows, labels


def _list_rows(path: Path, pack: Pack) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    number_of = {name: number for number, name in enumerate(pack.classes)}
    row_of: dict[str, int] | None = None
    found: dict[int, int] = {}
    for record in read_rows(path):
        cells = {str(name).strip().lower(): value for name, value in record.items()}
        names = (_NAME_COLUMN, *LABEL_COLUMNS)
        column = next((name for name in names if name in cells), "")
        label = cells.get(column)
        if column not in cells or not ("row" in cells or "key" in cells):
            raise UserError(f"{path} has the columns {', '.join(record)}: expected key or row, and label")
        if "row" in cells:
            row = _row_number(path, cells["row"], len(pack))
        else:
            row_of = row_of or {pack.key(row): row for row in range(len(pack))}
            if str(cells["key"]) not in row_of:
                raise UserError(f"{path}: the pack has no image with the key {cells['key']!r}")
            row = row_of[str(cells["key"])]
        if row in found:
            raise UserError(f"{path}: row {row} ({pack.key(row)}) is labelled twice; keep one line for it")
        found[row] = _label_number(path, label, number_of, column == _NAME_COLUMN)
    rows = np.fromiter(found.keys(), np.int64, len(found))
    return rows, np.fromiter(found.values(), np.int64, len(found))


def _row_number(path: Path, cell: Any, num_rows: int) -> int:
    try:
        row = int(number_text(cell))
    except ValueError:
        row = -1
    if not 0 <= row < num_rows:
        raise UserError(f"{path}: row {cell!r}, expected 0 to {num_rows - 1}")
    return row


def _label_number(path: Path, cell: Any, number_of: dict[str, int], is_name: bool) -> int:
    text = number_text(cell).strip()
    if text == "":
        return -1
    # In a column of names "7" is the class of that name, elsewhere class number 7.
    if is_name and str(cell) in number_of:
        return number_of[str(cell)]
    # Classes "1" to "3" have the numbers 0 to 2: what a 1 means cannot be told.
    if number_of.get(text, text) != text and text.isdigit() and number_of[text] != int(text):
        raise UserError(
            f"{path}: label {text} may be class number {text} or the class named {text!r}, which is number "
            f"{number_of[text]}: rename the column to `class` if it holds names"
        )
    try:
        return int(text)
    except ValueError:
        if text in number_of:
            return number_of[text]
        if not number_of:
            raise _no_classes(path) from None
        raise UserError(
            f"{path}: the pack has no class {text!r}; it has {', '.join(list(number_of)[:8])}"
        ) from None


def _no_classes(path: Path) -> UserError:
    return UserError(
        f"{path}: the pack was made without labels and has no classes to label with; name them by --classes"
    )


def export_labels(path: Path, pack: Pack, row_ranges: RowRanges, labels: NDArray[np.int64]) -> None:
    """Write labels as .csv (row, key, label, class; labelled rows alone), .npy or .pt (int64, all rows).

    Args:
        path: file to write, atomically; must not exist.
        pack: the pack.
        row_ranges: rows to write, in order.
        labels: int64 [len(pack)], -1 where a row has none.

    Raises:
        UserError: the file exists, or has another suffix.
    """
    if path.exists():
        raise UserError(f"{path} exists: choose another name, or remove it")
    rows = np.concatenate([np.arange(first, stop) for first, stop in row_ranges])
    binary, suffix = io.BytesIO(), path.suffix.lower()
    if suffix == ".npy":
        np.save(binary, labels[rows])
    elif suffix in (".pt", ".pth"):
        import torch

        torch.save(torch.from_numpy(labels[rows]), binary)
    elif suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "key", "label", "class"])
        for row in rows[labels[rows] >= 0].tolist():
            writer.writerow([row, pack.key(row), int(labels[row]), pack.classes[labels[row]]])
        binary.write(text.getvalue().encode("utf-8"))
    else:
        raise UserError(f"{path}: expected a name that ends with .csv, .npy or .pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, binary.getvalue())
