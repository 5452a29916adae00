"""Labels of a pack in files that other programs read and write, such as .csv, .npy and .pt."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import check_exists, csv_text, write_atomic
from loaders.packs.labels.file_names import RowNames
from loaders.packs.labels.tables import LabelTable
from loaders.packs.pack import Pack
from loaders.packs.sources.label_file import read_label_array
from loaders.packs.sources.list_rows import LIST_SUFFIXES, read_rows
from loaders.packs.sources.numbers import number_text
from loaders.packs.sources.table_columns import LABEL_COLUMNS, PATH_COLUMNS

_ARRAY_SUFFIXES = (".pt", ".pth", ".npy")
_NAME_COLUMN = "class"
# The key comes before the row: our own exports have both, and in another pack an image has another row.
_IMAGE_COLUMNS = ("key", "row", *PATH_COLUMNS, "name", "id")
RowRanges = Sequence[tuple[int, int]]


def read_label_file(path: Path, pack: Pack, row_ranges: RowRanges, source: str) -> LabelTable:
    """Make a label table from a file.

    Args:
        path: an array with one label per row; or a list that has for each image a `row`, a `key` or the name
            of its file (see `RowNames`), and a `label` (number or name) or a `class` (name).
        row_ranges: the rows that an array labels, in order, and among which a list finds names.
        source: who gave the labels, see `LabelTable`.

    Raises:
        UserError: the file cannot be read, or does not fit the pack, e.g. by an image that the pack does not
            have or that is labelled twice.
    """
    check_exists(path, "file", "a file of labels")
    suffix = path.suffix.lower()
    if suffix in _ARRAY_SUFFIXES:
        rows, labels = _array_rows(path, row_ranges)
    elif suffix in LIST_SUFFIXES:
        rows, labels = _list_rows(path, pack, row_ranges)
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


def _list_rows(path: Path, pack: Pack, row_ranges: RowRanges) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    number_of = {name: number for number, name in enumerate(pack.classes)}
    names: RowNames | None = None
    found: dict[int, int] = {}
    for number, record in enumerate(read_rows(path), 1):
        cells = {str(name).strip().lower(): value for name, value in record.items()}
        label, image = _columns_of(path, cells, pack, row_ranges)
        if image == "row" or _names_own_row(cells, pack):
            row = _row_number(path, cells["row"], len(pack))
        else:
            names = names or RowNames(pack, row_ranges)
            row = names.find(str(cells[image]), f"{path}, row {number}")
        if row in found:
            raise UserError(f"{path}: row {row} ({pack.key(row)}) is labelled twice; keep one line for it")
        found[row] = _label_number(path, cells[label], number_of, label == _NAME_COLUMN)
    rows = np.fromiter(found.keys(), np.int64, len(found))
    return rows, np.fromiter(found.values(), np.int64, len(found))


def _names_own_row(cells: Mapping[str, Any], pack: Pack) -> bool:
    """Tell whether a line has a row and that row's key, so that the keys need not be indexed."""
    row = number_text(cells.get("row"))
    return row.isdecimal() and int(row) < len(pack) and pack.key(int(row)) == cells.get("key")


def _columns_of(path: Path, cells: Mapping[str, Any], pack: Pack, row_ranges: RowRanges) -> tuple[str, str]:
    """Return the names of the column that holds the labels and of the column that names the images."""
    label = next((name for name in (_NAME_COLUMN, *LABEL_COLUMNS) if name in cells), None)
    image = next((name for name in _IMAGE_COLUMNS if name in cells), None)
    if label is None or image is None:
        raise UserError(
            f"{path} has the columns {', '.join(cells)}: expected a name, key or row of each image and its "
            f"class or label; {RowNames(pack, row_ranges).example()}"
        )
    return label, image


def new_class_names(path: Path, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a list of labels that are not classes yet, in alphabetical order.

    Args:
        path: a list as in `read_label_file`; an array holds no names.
    """
    if path.suffix.lower() not in LIST_SUFFIXES or not path.is_file():
        return ()
    names: set[str] = set()
    for record in read_rows(path):
        cells = {str(name).strip().lower(): value for name, value in record.items()}
        column = next((name for name in (_NAME_COLUMN, *LABEL_COLUMNS) if name in cells), "")
        text = number_text(cells.get(column)).strip()
        if text and text not in known and (column == _NAME_COLUMN or not _is_number(text)):
            names.add(text)
    return tuple(sorted(names))


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdigit()


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
    # In a column of names, "7" is the class with that name; in any other column it is class number 7.
    for name in (str(cell), text) if is_name else ():
        if name in number_of:
            return number_of[name]
    if is_name and text != "-1" and _is_number(text) and any(map(_is_number, number_of)):
        raise _no_class(path, text, number_of)
    # If classes "1" to "3" have the numbers 0 to 2, the label 1 is ambiguous.
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
        raise _no_class(path, text, number_of) from None


def _no_class(path: Path, text: str, known: Iterable[str]) -> UserError:
    return UserError(
        f"{path}: the pack has no class {text!r}; it has {', '.join(list(known)[:8])}; --new-classes adds it"
    )


def _no_classes(path: Path) -> UserError:
    return UserError(
        f"{path}: the pack was made without labels and has no classes to label with; name them with "
        "--classes, or take them from the labels with --new-classes"
    )


def export_labels(path: Path, pack: Pack, row_ranges: RowRanges, labels: NDArray[np.int64]) -> None:
    """Write labels as .csv (row, key, label, class of labelled rows), or .npy, .pt or .pth (int64, all rows).

    Args:
        path: file to write, atomically; must not exist.
        row_ranges: rows to write, in order.
        labels: int64 [len(pack)], -1 where a row has none.

    Raises:
        UserError: the file exists, or its suffix is none of these.
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
        lines = (
            (row, pack.key(row), int(labels[row]), pack.classes[labels[row]])
            for row in rows[labels[rows] >= 0].tolist()
        )
        binary.write(csv_text(("row", "key", "label", "class"), lines).encode())
    else:
        raise UserError(f"{path}: expected a name that ends with .csv, .npy or .pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, binary.getvalue())
