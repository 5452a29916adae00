"""Parquet and Arrow files with the images themselves in a column of bytes, as Hugging Face stores them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loaders.errors import UserError
from loaders.json_text import parse_json
from loaders.packs.reasons import Reason
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size
from loaders.packs.sources.naming import file_keys, folder_key
from loaders.packs.sources.numbers import NumberedClasses
from loaders.packs.sources.path_list import KEY_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "bytes", "picture")


def holds_images(path: Path) -> bool:
    """Tell whether a .parquet or .arrow file has a column of image bytes."""
    return path.suffix.lower() == ".arrow" or _image_column(_read_schema(path)) is not None


class ImageTableSource:
    """Rows of one or more tables; the label is a column of numbers, named by Hugging Face's metadata."""

    labels_are_folders = False

    def __init__(self, paths: list[Path], split: str | None) -> None:
        """Use these tables, in this order; `split` takes the rows whose split column says so."""
        self._paths = {path.name: path for path in paths}
        self._split = split
        self._schema = _read_schema(paths[0])
        column = _image_column(self._schema)
        if column is None:
            raise UserError(
                f"{paths[0]} has the columns {', '.join(self._schema.names)}: none holds image bytes"
            )
        self._image = column
        self._label, self._key, self._split_column = (
            next((name for name in self._schema.names if name.lower() in known), None)
            for known in (LABEL_COLUMNS, KEY_COLUMNS, SPLIT_COLUMNS)
        )
        if split is not None and self._split_column is None:
            raise UserError(f"{paths[0]} has no column for the split: expected {' or '.join(SPLIT_COLUMNS)}")
        self._classes = NumberedClasses(_hugging_face_names(self._schema, self._label))
        self._lock = threading.Lock()
        self._block: tuple[str, int, int, Any] = ("", 0, 0, None)  # file, first row, stop row, images

    def items(self) -> Iterator[SourceItem]:
        """Yield the rows table by table, one block of rows in memory at a time."""
        columns = [c for c in (self._image, self._label, self._key, self._split_column) if c is not None]
        for file, path in self._paths.items():
            if _read_schema(path).names != self._schema.names:
                raise UserError(f"{path} has other columns than the first file: pack it as another split")
            prefix = f"{file_keys([path.stem])[0]}/" if len(self._paths) > 1 else ""
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
            text = self._classes.label(label)
            own = f"{prefix}{row:08d}" if key is None else folder_key(str(key)).replace(".", "%2E")
            problem = "an empty cell" if size is None else None
            yield SourceItem(f"{file}/{row}", own, text, size or 0, row, problem)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the metadata's names, or 0, 1, ... where all labels are numbers."""
        return self._classes.names()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a row; rows near each other cost one read of their block."""
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

    def close(self) -> None:
        """Nothing is held open."""


class _Table:
    """A parquet's row groups, or an Arrow file's record batches, under one roof."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._batches: list[Any] | None = None
        if path.suffix.lower() == ".arrow":
            reader = _open_arrow(path)
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


def _open_arrow(path: Path) -> Any:
    """Open a stream or a file of Arrow; as a buffer and in this thread, so that pyarrow starts no others."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        data = source.read_buffer()
    options = pa.ipc.IpcReadOptions(use_threads=False)
    try:
        return pa.ipc.open_stream(data, options=options)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(data, options=options)


@contextmanager
def _open_table(path: Path) -> Iterator[_Table]:
    import pyarrow as pa

    try:
        yield _Table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): fetch it again") from None


def _read_schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() != ".arrow":
            return pq.read_schema(path)
        return _open_arrow(path).schema
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a table ({reason}): fetch it again") from None


def _image_column(schema: Any) -> str | None:
    """Return the column of image bytes: one of the usual names first, else the only one there is."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    names = [field.name for field in schema if is_bytes(field.type)]
    usual = [name for name in names if name.lower() in _IMAGE_COLUMNS]
    return usual[0] if usual else names[0] if len(names) == 1 else None


def _bytes_of(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as kinds

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if kinds.is_struct(column.type):
        # Through the parent: a missing image is a missing struct.
        return column.flatten()[column.type.get_field_index("bytes")]
    return column


def _hugging_face_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else None
