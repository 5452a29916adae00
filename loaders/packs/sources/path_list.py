"""Lists of paths with optional labels, splits and keys: .csv, .tsv, .txt, .jsonl, .parquet without images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.packs.sources.bytes_at import read_listed_file
from loaders.packs.sources.hugging_face import class_names_of
from loaders.packs.sources.item import SourceItem
from loaders.packs.sources.list_rows import column_names, first_rows, read_rows
from loaders.packs.sources.naming import file_key, file_stem, folder_key, is_image_name, join_key
from loaders.packs.sources.numbers import NumberedClasses, NumberLabels
from loaders.packs.sources.remote_folder import fetch, known_size
from loaders.packs.sources.table_columns import (
    KEY_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    ColumnOptions,
    asked_column,
    find_column,
    find_labels,
    unused_labels,
    unused_note,
)
from loaders.packs.stores.connect import connect, is_remote, store_errors

_LOOKED_AT = 4096


class PathListSource(NumberLabels):
    """Files named by one or more lists; a relative path begins at the folder of the first list."""

    def __init__(
        self, lists: list[Path], name: str, split: str | None, options: ColumnOptions | None = None
    ) -> None:
        """Use these lists.

        Args:
            lists: the files, .csv, .tsv, .txt, .jsonl or .parquet; copies if the lists are remote.
            name: PATH of the lists as the user gave it.
            split: take only the rows with this name in the split column; None takes all rows.
        """
        self._lists, self._name, self._split = lists, name, split
        self._options = options or ColumnOptions()
        self._base = name.rpartition("/")[0] if is_remote(name) else os.fspath(lists[0].parent)
        self._classes = NumberedClasses()
        self._notes: list[str] = []
        self._stems: dict[str, dict[str, str | None]] = {}
        self.has_labels = False

    def items(self) -> Iterator[SourceItem]:
        """Yield an item for each row of the lists, or for each row of the split."""
        found = 0
        for place, path in enumerate(self._lists):
            head = first_rows(path, _LOOKED_AT)
            if not head:
                continue
            columns = ListColumns(path, column_names(head), self._options)
            unused = unused_labels(head, (columns.path, columns.label, columns.split, columns.key))
            if place == 0:
                names = class_names_of(path).get(columns.label or "")
                self._classes = NumberedClasses(names, self._options.multi_label)
                note = unused_note(str(path), unused, columns.label)
                self._notes = [] if note is None else [note]
            self.has_labels = self.has_labels or columns.label is not None
            for number, row in enumerate(read_rows(path), 1):
                if self._split is not None and str(columns.value(row, "split", path)) != self._split:
                    continue
                found += 1
                yield self._item(path, number, row, columns)
        if self._split is not None and not found:
            raise UserError(f"{self._name}: no row has the split {self._split!r}; check the split column")

    def _item(self, path: Path, number: int, row: dict[str, Any], columns: ListColumns) -> SourceItem:
        cell = columns.value(row, "path", path)
        if not isinstance(cell, str | int) or not str(cell).strip():
            raise UserError(
                f"{path}, row {number}: no path in column {columns.path!r}; fill it or drop the row"
            )
        where = f"{path}, row {number}"
        text = self._classes.label(columns.value(row, "label", path), where) if columns.label else None
        name, problem, size = str(cell), None, 0
        try:
            name, size = self._found(name)
        except OSError as error:
            problem = f"in the list, but cannot be read: {error.strerror or error}"
        key = columns.value(row, "key", path) if columns.key else None
        return SourceItem(
            name, _list_key(name if key is None else str(key), key is None), text, size, -1, problem
        )

    def _found(self, name: str) -> tuple[str, int]:
        r"""Return the path of the file to which a path in a list refers, and the file's size.

        If a local path does not exist as written, it is tried without surrounding blanks and with "/" for the
        "\" of Windows, and then with the suffix of the one image with this stem: many lists lack suffixes.
        """
        try:
            return name, self._size(name)
        except OSError:
            plain = name.strip().replace("\\", "/")
            if is_remote(self._path(plain)):
                raise
            folder, slash, file = plain.rpartition("/")
            whole = self._stems_of(folder).get(file)
            for candidate in (plain, folder + slash + whole if whole else plain):
                if candidate != name and os.path.isfile(self._path(candidate)):
                    return candidate, self._size(candidate)
            raise

    def _stems_of(self, folder: str) -> dict[str, str | None]:
        """Return the images of a folder by their stems; None for a stem that several images share."""
        if folder not in self._stems:
            path = self._path(folder) if folder else self._base or "."
            names = sorted(filter(is_image_name, os.listdir(path))) if os.path.isdir(path) else []
            counts = Counter(map(file_stem, names))
            self._stems[folder] = {file_stem(n): n if counts[file_stem(n)] == 1 else None for n in names}
        return self._stems[folder]

    def _size(self, name: str) -> int:
        path = self._path(name)
        if is_remote(path):
            fs, inside = connect(path)
            with store_errors(path, let=OSError):
                return known_size(fs.size(inside))
        return os.stat(path).st_size

    def _path(self, name: str) -> str:
        if is_remote(name) or os.path.isabs(name):
            return name
        return f"{self._base}/{name}" if self._base else name

    def notes(self) -> list[str]:
        """Return the notes on columns and labels for the summary."""
        return self._notes + self._classes.notes()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a file."""
        path = self._path(item.name)
        if is_remote(path):
            fs, inside = connect(path)
            return fetch(fs, inside, self._name, item)
        return read_listed_file(path, self._name, item)


class ListColumns:
    """Which columns of a list hold paths, labels, splits and keys."""

    def __init__(self, path: Path, names: list[str], options: ColumnOptions) -> None:
        """Find the columns by their names.

        Raises:
            UserError: no column of paths, or several columns that may be the labels.
        """
        if options.image_column is not None:
            found: str | None = asked_column(str(path), names, options.image_column, "--image-column")
        else:
            found = find_column(names, (*PATH_COLUMNS, "id"))
        if found is None:
            raise UserError(
                f"{path} has the columns {', '.join(names)}: expected one of {', '.join(PATH_COLUMNS)}; "
                f"name the column of the paths by --image-column"
            )
        self.path = found
        rest = [name for name in names if name != found]
        self.split = find_column(rest, SPLIT_COLUMNS)
        self.key = find_column(rest, KEY_COLUMNS)
        declared = [name for name in class_names_of(path) if name in rest]
        self.label = find_labels(str(path), rest, options.label_column, declared)

    def value(self, row: dict[str, Any], kind: str, path: Path) -> Any:
        """Return a row's "path", "label", "split" or "key"; None for a label that the row lacks."""
        name = getattr(self, kind)
        if name is None:
            raise UserError(f"{path} has no column for the {kind}: expected {' or '.join(SPLIT_COLUMNS)}")
        if name not in row and kind == "label":
            return None  # an object of .jsonl may lack a label
        if name not in row:
            raise UserError(f"{path}: a row has no {name!r}; every row must have the columns of the first")
        return row[name]


def _list_key(text: str, is_path: bool) -> str:
    folder, _, name = text.rpartition("/")
    name = name.rpartition(".")[0] or name if is_path and is_image_name(name) else name
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    return join_key("/".join(folder_key(part) for part in parts), file_key(name, False) if name else "%")
