"""Parquet and Arrow files with the images in a column of bytes, as Hugging Face stores them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.packs.reasons import Reason
from loaders.packs.sources.hugging_face import class_names_of, open_arrow, read_schema
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size
from loaders.packs.sources.naming import file_key, folder_key
from loaders.packs.sources.numbers import NumberedClasses, NumberLabels
from loaders.packs.sources.table_columns import (
    KEY_COLUMNS,
    SPLIT_COLUMNS,
    ColumnOptions,
    asked_column,
    find_column,
    find_labels,
    unused_labels,
    unused_note,
)

TABLE_SUFFIXES = (".parquet", ".arrow")
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "picture")
_LOOKED_AT = 4096


def holds_images(path: Path, options: ColumnOptions | None = None) -> bool:
    """Tell whether a table holds images.

    An .arrow file always counts as one that does. A .parquet file does if the chosen column holds bytes or,
    if the user chose none, any column does.
    """
    if path.suffix.lower() == ".arrow":
        return True
    columns, asked = _byte_columns(read_schema(path)), (options or ColumnOptions()).image_column
    return bool(columns if asked is None else find_column(columns, (asked.strip().lower(),)))


class ImageTableSource(NumberLabels):
    """Rows of one or more tables; labels come from a column, class names from Hugging Face's metadata."""

    def __init__(self, paths: list[Path], split: str | None, options: ColumnOptions | None = None) -> None:
        """Use these tables, in this order.

        Args:
            paths: .parquet or .arrow files with the same columns.
            split: take only the rows with this name in the split column; None takes all rows.

        Raises:
            UserError: a table cannot be read, lacks a needed column, or has several candidates for one.
        """
        self._paths = {path.name: path for path in paths}
        self._split, self._where = split, str(paths[0])
        self._schema = read_schema(paths[0])
        options, names = options or ColumnOptions(), self._schema.names
        self._image = _image_column(self._where, self._schema, options)
        rest = [
            name for name in names if name != self._image and not _is_bytes(self._schema.field(name).type)
        ]
        self._key, self._split_column = find_column(rest, KEY_COLUMNS), find_column(rest, SPLIT_COLUMNS)
        class_names = class_names_of(paths[0])
        declared = [name for name in rest if name in class_names]
        self._label = find_labels(self._where, rest, options.label_column, declared)
        self.has_labels = self._label is not None
        if split is not None and self._split_column is None:
            raise UserError(f"{paths[0]} has no column for the split: expected {' or '.join(SPLIT_COLUMNS)}")
        self._classes = NumberedClasses(class_names.get(self._label or ""), options.multi_label)
        self._notes = self._unused(rest)
        self.has_keys = self._key is not None
        self._lock = threading.Lock()
        # The block of rows read last: file, first row, stop row, images.
        self._block: tuple[str, int, int, Any] = ("", 0, 0, None)

    def _unused(self, rest: list[str]) -> list[str]:
        """Return the notes on unused columns for the summary."""
        notes = []
        if bytes_too := [name for name in _byte_columns(self._schema) if name != self._image]:
            notes.append(
                f"{self._where}: the images are column {self._image!r}; not used: {', '.join(bytes_too)} "
                f"(choose with --image-column)"
            )
        others = [name for name in rest if name not in (self._label, self._key, self._split_column)]
        with _open_table(self._paths[next(iter(self._paths))]) as table:
            if others and table.num_blocks:
                head = table.block(0, others).slice(0, _LOOKED_AT).to_pylist()
                note = unused_note(self._where, unused_labels(head, ()), self._label)
                notes += [] if note is None else [note]
        return notes

    def items(self) -> Iterator[SourceItem]:
        """Yield an item for each row, or each of the split, table by table; memory holds a block of rows."""
        columns = [c for c in (self._image, self._label, self._key, self._split_column) if c is not None]
        for file, path in self._paths.items():
            if read_schema(path).names != self._schema.names:
                raise UserError(f"{path} has other columns than the first file: pack it as another split")
            prefix = f"{file_key(path.stem, False)}/" if len(self._paths) > 1 else ""
            with _open_table(path) as table:
                for number in range(table.num_blocks):
                    first = table.first_rows[number]
                    yield from self._items_of(file, prefix, first, table.block(number, columns))

    def _items_of(self, file: str, prefix: str, first: int, block: Any) -> Iterator[SourceItem]:
        import pyarrow.compute as pc

        data = _bytes_of(block.column(self._image))
        sizes = pc.binary_length(data).to_pylist()

        def column(name: str | None) -> list[Any]:
            return [None] * len(sizes) if name is None else block.column(name).to_pylist()

        values = zip(sizes, column(self._label), column(self._key), column(self._split_column), strict=True)
        for row, (size, label, key, split) in enumerate(values, first):
            if self._split is not None and str(split) != self._split:
                continue
            text = None
            if self._label is not None:
                text = self._classes.label(label, f"{self._paths[file]}, row {row}, column {self._label!r}")
            own = f"{prefix}{row:08d}" if key is None else folder_key(str(key)).replace(".", "%2E")
            problem = "an empty cell" if size is None else None
            yield SourceItem(f"{file}/{row}", own, text, size or 0, row, problem)

    def notes(self) -> list[str]:
        """Return the notes on columns and labels for the summary."""
        return self._notes + self._classes.notes()

    def read(self, item: SourceItem) -> bytes:
        """Return the image bytes of a row; its block stays in memory for the next rows."""
        file = item.name.rpartition("/")[0]
        with self._lock:
            name, first, stop, images = self._block
            if name != file or not first <= item.position < stop:
                self._block = self._load(file, item.position)
                name, first, stop, images = self._block
        if not first <= item.position < stop:
            raise UserError(f"{self._paths[file]} changed while packing: pack again into a new --out")
        data = images[item.position - first].as_py()
        if data is None:
            raise UnreadableItem("an empty cell", Reason.EMPTY)
        check_size(str(self._paths[file]), item, len(data))
        return bytes(data)

    def _load(self, file: str, row: int) -> tuple[str, int, int, Any]:
        with _open_table(self._paths[file]) as table:
            for number in range(table.num_blocks):
                first, stop = table.first_rows[number], table.first_rows[number + 1]
                if first <= row < stop:
                    return (
                        file,
                        first,
                        stop,
                        _bytes_of(table.block(number, [self._image]).column(self._image)),
                    )
        return file, 0, 0, None


class _Table:
    """The row groups of a parquet file or the record batches of an Arrow file, with one interface."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._batches: list[Any] | None = None
        if path.suffix.lower() == ".arrow":
            reader = open_arrow(path)
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            else:
                self._batches = list(reader)
            sizes = [batch.num_rows for batch in self._batches]
        else:
            self._file = pq.ParquetFile(path, pre_buffer=False)
            groups = range(self._file.num_row_groups)
            sizes = [self._file.metadata.row_group(i).num_rows for i in groups]
        self.num_blocks = len(sizes)
        self.first_rows = [sum(sizes[:i]) for i in range(len(sizes) + 1)]

    def block(self, number: int, columns: list[str]) -> Any:
        if self._batches is not None:
            return self._batches[number].select(columns)
        return self._file.read_row_group(number, columns, use_threads=False).combine_chunks()


@contextmanager
def _open_table(path: Path) -> Iterator[_Table]:
    import pyarrow as pa

    try:
        yield _Table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from None


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _byte_columns(schema: Any) -> list[str]:
    return [field.name for field in schema if _is_bytes(field.type)]


def _image_column(where: str, schema: Any, options: ColumnOptions) -> str:
    """Return the column of image bytes: the chosen one, else one with a usual name, else the only one.

    Raises:
        UserError: there is no such column, or the choice is not clear.
    """
    names = _byte_columns(schema)
    if options.image_column is not None:
        return asked_column(f"{where} (columns of bytes)", names, options.image_column, "--image-column")
    usual = find_column(names, _IMAGE_COLUMNS)
    if usual is None and len(names) > 1:
        raise UserError(
            f"{where} has several columns of bytes, {', '.join(names)}: choose one with --image-column"
        )
    found = usual or next(iter(names), None)
    if found is None:
        raise UserError(f"{where} has the columns {', '.join(schema.names)}: none holds image bytes")
    return found


def _bytes_of(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as kinds

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if kinds.is_struct(column.type):
        # flatten() keeps the struct's nulls: a missing image is a null struct.
        return column.flatten()[column.type.get_field_index("bytes")]
    return column
