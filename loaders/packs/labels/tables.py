"""Label tables: labels of some rows of a pack, in a parquet file of their own."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.checks import check_whole
from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.packs.manifest import LABELS_FOLDER, MAX_CYCLE, TRUE_LABELS

TABLE_VERSION = 1
_ROWS_PER_GROUP = 1 << 20
# A file that claims more rows per byte than this is taken as damaged. Consecutive rows with one label, which
# compress best, take 1.3 bytes per row (measured).
_ROWS_PER_BYTE = 16
_PLAIN_BYTES = 28  # bytes of a row without compression
_DIGESTED = 1 << 16
_IMAGES = "sluice.images"  # key of the images' digest in the metadata of the file


def label_table_path(name: str) -> str:
    """Return the path of the label table `name` relative to its pack."""
    return f"{LABELS_FOLDER}/{name}.parquet"


@dataclass(frozen=True)
class LabelTable:
    """Labels of some rows of a pack, one entry per row, in increasing order of row.

    Attributes:
        row: int64 [M], rows of the pack, strictly increasing.
        label: int64 [M], in [0, num_classes).
        confidence: float32 [M], in [0, 1]; 1 for labels that a human gave.
        source: object [M] of str, who gave the label, e.g. "true", "pseudo", "oracle".
        cycle: int32 [M], round of self-training or active learning; 0 for labels from the start.
        num_classes: number of classes of the pack.
        images: digest of the labelled images, by which tables of other packs are recognised, see
            `Pack.signed`; "" if it is not known.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    confidence: NDArray[np.float32]
    source: NDArray[np.object_]
    cycle: NDArray[np.int32]
    num_classes: int
    images: str = ""

    def __post_init__(self) -> None:
        """Check types, lengths and ranges.

        Raises:
            UserError: a column has a wrong type, shape or length; rows are unordered or negative; a label, a
                confidence or the number of classes is out of range.
        """
        check_whole("label table: num_classes", self.num_classes, 0)
        for name, dtype in _COLUMN_DTYPES.items():
            column = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != 1:
                raise UserError(
                    f"label table: expected column {name} as {dtype} [M], found {_described(column)}; "
                    "LabelTable.of converts what can be converted"
                )
        lengths = {name: len(getattr(self, name)) for name in _COLUMN_DTYPES}
        if len(set(lengths.values())) != 1:
            raise UserError(f"label table: columns differ in length, {lengths}; give one entry per row")
        if len(self.row) == 0:
            return
        if self.row[0] < 0 or (np.diff(self.row) <= 0).any():
            raise UserError("label table: rows must be >= 0 and strictly increasing; sort and deduplicate")
        if self.label.min() < 0 or self.label.max() >= self.num_classes:
            raise UserError(
                f"label table: labels reach from {self.label.min()} to {self.label.max()}, expected 0 to "
                f"{self.num_classes - 1}; leave unlabelled rows out"
            )
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise UserError("label table: confidences must lie in [0, 1]; normalise them")

    def __len__(self) -> int:
        """Return the number of labelled rows."""
        return len(self.row)

    @classmethod
    def of(
        cls,
        row: NDArray[np.int64],
        label: NDArray[np.int64],
        num_classes: int,
        confidence: NDArray[np.float32] | float = 1.0,
        source: str = TRUE_LABELS,
        cycle: int = 0,
    ) -> LabelTable:
        """Make a table, sorted by row, whose source and cycle are the same for all rows.

        Args:
            row: whole numbers [M], in any order, none twice.
            label: whole numbers [M].
            confidence: numbers [M], or one number for all rows; rounded to float32.
            cycle: round in which the labels were given, at most `MAX_CYCLE`.

        Raises:
            UserError: rows or labels are not whole numbers (nothing is truncated), lengths differ, or a value
                is not allowed in a table.
        """
        check_whole("label table cycle", cycle, 0, MAX_CYCLE)
        rows, labels = _whole_numbers("row", row), _whole_numbers("label", label)
        if np.shape(confidence) not in ((), rows.shape) or labels.shape != rows.shape:
            raise UserError(
                f"label table: expected one label and one confidence for each of {len(rows)} rows, found "
                f"{labels.shape} and {np.shape(confidence)}; give one entry per row"
            )
        order = np.argsort(rows, kind="stable")
        conf = np.broadcast_to(np.asarray(confidence, np.float32), rows.shape)
        return cls(
            row=rows[order],
            label=labels[order],
            confidence=conf[order],
            source=np.full(len(order), source, dtype=object),
            cycle=np.full(len(order), cycle, np.int32),
            num_classes=num_classes,
        )

    def join(self, other: LabelTable) -> LabelTable:
        """Add the labels of `other`; if both tables label a row, the label of this table stays.

        Raises:
            UserError: the tables have different numbers of classes.
        """
        if other.num_classes != self.num_classes:
            raise UserError(
                f"label tables: expected {self.num_classes} classes in both, found {other.num_classes}; "
                "they belong to different packs"
            )
        new = ~np.isin(other.row, self.row, assume_unique=True)
        order = np.argsort(np.concatenate([self.row, other.row[new]]), kind="stable")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)[new]])[order]
            for name in _COLUMN_DTYPES
        }
        return LabelTable(**columns, num_classes=self.num_classes)

    def of_rows(self, rows: NDArray[np.int64]) -> LabelTable:
        """Return the part of the table that labels these rows.

        Args:
            rows: int64 [K], rows of the pack in any order; rows without a label are left out.
        """
        kept = np.isin(self.row, rows)
        columns: dict[str, Any] = {name: getattr(self, name)[kept] for name in _COLUMN_DTYPES}
        return LabelTable(**columns, num_classes=self.num_classes)

    def digest(self, content_hash: NDArray[np.uint64]) -> str:
        """Return a digest of the labelled images, or of 65,536 evenly spaced ones if there are more.

        Args:
            content_hash: uint64 [N, 2], content hash of every row of the pack.
        """
        chosen = np.linspace(0, max(0, len(self) - 1), min(len(self), _DIGESTED)).round().astype(np.int64)
        return hashlib.sha256(content_hash[self.row[chosen]].tobytes()).hexdigest()[:32]

    def dense(self, num_rows: int) -> NDArray[np.int64]:
        """Return the label of every row of the pack, int64 [num_rows], -1 where a row has no label.

        Raises:
            UserError: the table names a row that the pack does not have.
        """
        if len(self.row) and self.row[-1] >= num_rows:
            raise UserError(
                f"label table: expected rows below {num_rows} as in the pack, found row {self.row[-1]}; the "
                "table belongs to another pack"
            )
        labels = np.full(num_rows, -1, np.int64)
        labels[self.row] = self.label
        return labels

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table as parquet, atomically; make its folder if needed."""
        path = Path(path)
        buffer = io.BytesIO()
        with LabelTableWriter(buffer, self.num_classes, self.images) as writer:
            for first in range(0, len(self), _ROWS_PER_GROUP):
                part = slice(first, first + _ROWS_PER_GROUP)
                writer.append(*(getattr(self, name)[part] for name in _COLUMN_DTYPES))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike[str], max_rows: int | None = None) -> LabelTable:
        """Read and check a table.

        Args:
            max_rows: number of rows of the pack, if known; a table with more is refused before it is read.

        Raises:
            UserError: no such file, not a label table, a newer version, more rows than the pack has or the
                file can hold, empty cells, or values out of range.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        try:
            with path.open("rb") as file:  # pyarrow does not take paths that are not UTF-8
                opened = pq.ParquetFile(file, pre_buffer=False)
                _check_size(path, opened.metadata, max_rows)
                _check_types(path, opened.schema_arrow)
                # Read in this thread alone: a process may abort if it ends while pyarrow's threads free what
                # they read ("terminate called without an active exception", apache/arrow#34314).
                table = opened.read(_schema().names, use_threads=False)
                meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            version, num_classes = int(meta["sluice.version"]), int(meta["sluice.num_classes"])
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"no label table at {path}; check the path") from None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path} is not a label table ({reason}); expected parquet written by Sluice"
            ) from None
        if version > TABLE_VERSION:
            raise UserError(
                f"{path} has table version {version}, this Sluice reads {TABLE_VERSION}: update Sluice"
            )
        if any(table.column(name).null_count for name in _COLUMN_DTYPES):
            raise UserError(f"{path} holds empty cells; leave unlabelled rows out")
        try:
            sources = _texts(table.column("source"))
        except (pa.ArrowException, ValueError, IndexError):
            raise UserError(f"{path} is damaged: the column `source` cannot be read; restore it") from None
        return cls(
            **{n: table.column(n).to_numpy() for n in ("row", "label", "confidence", "cycle")},
            source=sources,
            num_classes=num_classes,
            images=meta.get(_IMAGES, ""),
        )


def _described(column: Any) -> str:
    if isinstance(column, np.ndarray):
        return f"{column.dtype} {list(column.shape)}"
    return type(column).__name__


def _whole_numbers(name: str, values: Any) -> NDArray[np.int64]:
    """Return values as int64 [M].

    Raises:
        UserError: the values are not one-dimensional, not integers or too large for int64.
    """
    array = np.asarray(values)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)  # an empty list has no type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"label table: expected column {name} as whole numbers [M], found {_described(array)}; round or "
            "convert it first"
        )
    if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise UserError(f"label table: {name} {array.max()} is out of range; correct it")
    return array.astype(np.int64)


def _check_types(path: Path, schema: Any) -> None:
    """Raise `UserError` if a column is missing or would have to be converted."""
    for column in _schema():
        was = schema.field(column.name).type if column.name in schema.names else "none"
        if was != column.type:
            raise UserError(
                f"{path} is not a label table: expected column {column.name} as {column.type}, found {was}; "
                "write it with LabelTable.write"
            )


def _check_size(path: Path, footer: Any, max_rows: int | None) -> None:
    """Refuse a table whose footer claims too many rows: a few bytes of equal values could fill the memory.

    Raises:
        UserError: there are more rows than `max_rows`, or than the file can hold with distinct row numbers.
    """
    size_bytes = path.stat().st_size
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    num_rows = max(footer.num_rows, sum(group.num_rows for group in groups))
    plain_bytes = sum(group.total_byte_size for group in groups)
    if max_rows is not None and num_rows > max_rows:
        raise UserError(
            f"label table {path}: expected at most {max_rows} rows as in the pack, found {num_rows}; it "
            "belongs to another pack"
        )
    if max(num_rows, plain_bytes // _PLAIN_BYTES) > _ROWS_PER_BYTE * size_bytes or plain_bytes < 0:
        raise UserError(
            f"{path} is damaged: {size_bytes} bytes claim to hold {num_rows} rows in {plain_bytes} bytes; "
            "restore it"
        )


def _texts(column: Any) -> NDArray[np.object_]:
    """Return a dictionary-encoded column as object [M] of str, without a new string for each row."""
    whole = column.unify_dictionaries().combine_chunks()
    texts = np.array([*whole.dictionary.to_pylist(), ""], dtype=object)
    found: NDArray[np.object_] = texts[whole.indices.to_numpy()]
    return found


_COLUMN_DTYPES: dict[str, np.dtype[Any]] = {
    "row": np.dtype(np.int64),
    "label": np.dtype(np.int64),
    "confidence": np.dtype(np.float32),
    "source": np.dtype(object),
    "cycle": np.dtype(np.int32),
}


def _schema(num_classes: int | None = None, images: str = "") -> Any:
    import pyarrow as pa

    types = (pa.int64(), pa.int64(), pa.float32(), pa.dictionary(pa.int32(), pa.string()), pa.int32())
    meta = None
    if num_classes is not None:
        meta = {"sluice.version": str(TABLE_VERSION), "sluice.num_classes": str(num_classes)}
        meta |= {_IMAGES: images} if images else {}
    return pa.schema([pa.field(n, t) for n, t in zip(_COLUMN_DTYPES, types, strict=True)], metadata=meta)


class LabelTableWriter:
    """Writes a label table part by part, so that a billion labels need only the memory of one part."""

    def __init__(self, file: Any, num_classes: int, images: str = "") -> None:
        """Begin a table in `file`, a binary file open for writing; `images` as in `LabelTable`."""
        import pyarrow.parquet as pq

        self._schema = _schema(num_classes, images)
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def append(
        self,
        row: NDArray[np.int64],
        label: NDArray[np.int64],
        confidence: NDArray[np.float32],
        source: NDArray[np.object_],
        cycle: NDArray[np.int32],
    ) -> None:
        """Append labelled rows; row numbers must increase from part to part."""
        import pyarrow as pa

        # Built from buffers, since `pa.array` of a NumPy array and `dictionary_encode` load modules, which
        # takes a tenth of a second.
        def column(values: NDArray[Any], name: str, kind: Any) -> Any:
            exact = np.ascontiguousarray(values.astype(_COLUMN_DTYPES[name], casting="equiv", copy=False))
            return pa.Array.from_buffers(kind, len(exact), [None, pa.py_buffer(exact)])

        texts = source.tolist()
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        indices = np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
        names = pa.array([*numbers], pa.string())
        arrays = [
            column(row, "row", pa.int64()),
            column(label, "label", pa.int64()),
            column(confidence, "confidence", pa.float32()),
            pa.DictionaryArray.from_arrays(column(indices, "cycle", pa.int32()), names),
            column(cycle, "cycle", pa.int32()),
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def __enter__(self) -> LabelTableWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Write the footer."""
        self._writer.close()
