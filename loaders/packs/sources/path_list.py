"""Lists of paths with optional labels, splits and keys: .csv, .tsv, .jsonl, or .parquet without images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loaders.errors import UserError
from loaders.json_text import parse_json
from loaders.packs.sources.bytes_at import read_listed_file
from loaders.packs.sources.item import SourceItem
from loaders.packs.sources.naming import file_keys, folder_key, is_image_name, join_key
from loaders.packs.sources.numbers import NumberedClasses
from loaders.packs.sources.remote import fetch, file_system, is_remote

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "target", "category")
SPLIT_COLUMNS = ("split", "subset", "partition")
KEY_COLUMNS = ("key", "id")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_BATCH_ROWS = 4096


class PathListSource:
    """Files named by a list; relative paths are seen from the folder of the list."""

    labels_are_folders = False

    def __init__(self, lists: list[Path], name: str, split: str | None) -> None:
        """Use these lists.

        Args:
            lists: the files, .csv, .tsv, .jsonl or .parquet.
            name: what the user calls them.
            split: take the rows whose split column says so; None takes all.
        """
        self._lists, self._name, self._split = lists, name, split
        self._base = name.rpartition("/")[0] if is_remote(name) else os.fspath(lists[0].parent)
        self._classes = NumberedClasses()

    def items(self) -> Iterator[SourceItem]:
        """Read the lists row by row."""
        found = 0
        for path in self._lists:
            for number, row in enumerate(read_rows(path), 1):
                if number == 1:
                    columns = _Columns(path, list(row))
                if self._split is not None and str(columns.value(row, "split", path)) != self._split:
                    continue
                found += 1
                yield self._item(path, number, row, columns)
        if self._split is not None and not found:
            raise UserError(f"{self._name}: no row has the split {self._split!r}; check the split column")

    def _item(self, path: Path, number: int, row: dict[str, Any], columns: _Columns) -> SourceItem:
        name = columns.value(row, "path", path)
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{path}, row {number}: no path in column {columns.path!r}; fill it or drop the row"
            )
        text = self._classes.label(columns.value(row, "label", path)) if columns.label else None
        key = str(columns.value(row, "key", path)) if columns.key else name
        problem, size = None, 0
        try:
            size = self._size(name)
        except OSError as error:
            problem = f"in the list, but cannot be read: {error.strerror or error}"
        return SourceItem(name, _list_key(key, columns.key is None), text, size, problem=problem)

    def _size(self, name: str) -> int:
        path = self._path(name)
        if is_remote(path):
            fs, inside = file_system(path)
            return int(fs.size(inside) or 0)
        return os.stat(path).st_size

    def _path(self, name: str) -> str:
        if is_remote(name) or os.path.isabs(name):
            return name
        return f"{self._base}/{name}" if self._base else name

    def class_names(self) -> tuple[str, ...] | None:
        """Return 0, 1, ... where all labels are numbers."""
        return self._classes.names()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a file."""
        path = self._path(item.name)
        if is_remote(path):
            fs, inside = file_system(path)
            return fetch(fs, inside, self._name, item)
        return read_listed_file(path, self._name, item)

    def close(self) -> None:
        """Nothing is held open."""


class _Columns:
    """Which column of a list says what."""

    def __init__(self, path: Path, names: list[str]) -> None:
        found = _first_of(names, PATH_COLUMNS)
        if found is None:
            raise UserError(
                f"{path} has the columns {', '.join(names)}: expected one of {', '.join(PATH_COLUMNS)}; "
                f"rename the column of the paths"
            )
        self.path = found
        self.label = _first_of(names, LABEL_COLUMNS)
        self.split = _first_of(names, SPLIT_COLUMNS)
        self.key = _first_of(names, KEY_COLUMNS)

    def value(self, row: dict[str, Any], kind: str, path: Path) -> Any:
        name = getattr(self, kind)
        if name is None:
            raise UserError(f"{path} has no column for the {kind}: expected {' or '.join(SPLIT_COLUMNS)}")
        if name not in row:
            raise UserError(f"{path}: a row has no {name!r}; every row must have the columns of the first")
        return row[name]


def _first_of(names: list[str], known: tuple[str, ...]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _list_key(text: str, is_path: bool) -> str:
    folder, _, name = text.rpartition("/")
    name = name.rpartition(".")[0] or name if is_path and is_image_name(name) else name
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    return join_key("/".join(folder_key(part) for part in parts), file_keys([name])[0] if name else "%")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .csv, .tsv, .jsonl or .parquet as dictionaries, a block in memory at a time.

    Raises:
        UserError: a damaged file, or a row that has not the columns of the heading.
    """
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower(), _csv_rows)
    try:
        yield from reader(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a list ({error}): expected UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and the disk") from None


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file, delimiter=delimiter, strict=True):
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, a row near {next(iter(row.values()))!r}: more or fewer cells than columns"
                )
            yield row


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON ({error}); correct it") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected an object with the columns of the list")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no parquet or damaged ({str(error).splitlines()[0]})") from None
