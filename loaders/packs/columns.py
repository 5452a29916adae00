"""The index columns: one .npy file per column, memory-mapped when read and streamed when written."""

from __future__ import annotations

import ast
import hashlib
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import partial_path, publish
from loaders.packs.manifest import INDEX_FOLDER, FileInfo

_MAX_HEADER_BYTES = 4096
COLUMN_DTYPES: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "shard": (np.dtype("<u4"), ()),
    "offset": (np.dtype("<u8"), ()),
    "size": (np.dtype("<u4"), ()),
    "height": (np.dtype("<u4"), ()),
    "width": (np.dtype("<u4"), ()),
    "split": (np.dtype("<u2"), ()),
    "encoding": (np.dtype("u1"), ()),
    "action": (np.dtype("u1"), ()),
    "content_hash": (np.dtype("<u8"), (2,)),
    "crc32": (np.dtype("<u4"), ()),
    "key_offset": (np.dtype("<u8"), ()),
    "key_bytes": (np.dtype("u1"), ()),
}


@dataclass(frozen=True)
class IndexColumns:
    """The columns of a pack, memory-mapped read-only; N is the number of rows.

    Attributes:
        shard: uint32 [N], number of the shard in the pack.
        offset: uint64 [N], where the encoded image begins in its shard.
        size: uint32 [N], bytes of the encoded image.
        height, width: uint32 [N], pixels.
        split: uint16 [N], position of the split in the manifest.
        encoding: uint8 [N], 0 = JPEG, 1 = pixels uint8 [height, width, 3].
        action: uint8 [N], what was done to the image, bits of `loaders.packs.image.Action`.
        content_hash: uint64 [N, 2], 16-byte BLAKE2b of the encoded bytes, which identifies the image.
        crc32: uint32 [N], zlib's CRC-32 of the encoded bytes, cheap enough to be checked at every read.
        key_offset: uint64 [N + 1], where each key begins in `key_bytes`, and the end of the last key.
        key_bytes: uint8 [total], the keys (see `Pack.key`) in UTF-8, one after the other.
    """

    shard: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    height: NDArray[np.uint32]
    width: NDArray[np.uint32]
    split: NDArray[np.uint16]
    encoding: NDArray[np.uint8]
    action: NDArray[np.uint8]
    content_hash: NDArray[np.uint64]
    crc32: NDArray[np.uint32]
    key_offset: NDArray[np.uint64]
    key_bytes: NDArray[np.uint8]

    def key(self, row: int) -> str:
        """Return the key of `row`; raise `UserError` if it is damaged."""
        first, stop = int(self.key_offset[row]), int(self.key_offset[row + 1])
        try:
            if not first <= stop <= len(self.key_bytes):
                raise ValueError(f"bytes {first} to {stop} of {len(self.key_bytes)}")
            return bytes(self.key_bytes[first:stop]).decode("utf-8")
        except ValueError as error:
            raise UserError(
                f"the key of row {row} is damaged ({error}): restore {column_path('key_offset')} and "
                f"{column_path('key_bytes')}, or pack again"
            ) from None


def column_path(name: str) -> str:
    """Return the path of a column relative to its pack."""
    return f"{INDEX_FOLDER}/{name}.npy"


def open_columns(folder: Path, num_rows: int) -> IndexColumns:
    """Map every column of the pack in `folder`; check headers and lengths, but read no row.

    Raises:
        UserError: a column is missing or damaged, or has another dtype or length than expected.
    """
    columns: dict[str, Any] = {}
    for field in fields(IndexColumns):
        name = field.name
        dtype, row_shape = COLUMN_DTYPES[name]
        path = folder / column_path(name)
        try:
            column = _map_column(path)
        except (OSError, ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"index column {path} is damaged ({reason}); restore it or pack again") from None
        expected = {"key_offset": num_rows + 1, "key_bytes": column.shape[0] if column.ndim else 0}
        shape = (expected.get(name, num_rows), *row_shape)
        if column.dtype != dtype or column.shape != shape:
            raise UserError(
                f"index column {path} is {column.dtype} {column.shape}, expected {dtype} {shape}: "
                f"it does not belong to this manifest; restore it or pack again"
            )
        columns[name] = column
    return IndexColumns(**columns)


def _map_column(path: Path) -> NDArray[Any]:
    """Memory-map a .npy file.

    NumPy's own reader is not used: it allocates what a damaged header says, and tries to mend odd headers.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2"):
            raise ValueError("no .npy file of version 1 or 2")
        first = 10 if start[6] == 1 else 12
        length = int.from_bytes(start[8:first], "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        file.seek(first)
        header = ast.literal_eval(file.read(length).decode("ascii"))
    descr, order, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or order or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("a header of another kind of array")
    dtype = np.dtype(descr)
    size_bytes = first + length + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size_bytes != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes, expected {size_bytes}")
    mapped = np.memmap(path, dtype, mode="r", offset=first + length, shape=tuple(shape))
    return np.asarray(mapped)  # indexing np.memmap, a subclass, takes ten times as long


class ColumnWriter:
    """Writes one .npy file block by block; the file has a temporary name until it is complete."""

    def __init__(self, folder: Path, name: str, num_rows: int) -> None:
        """Begin the column `name` of the pack in `folder`; exactly `num_rows` entries must be appended."""
        self.path = column_path(name)
        self._final = folder / self.path
        self._dtype, row_shape = COLUMN_DTYPES[name]
        self._expected_bytes = num_rows * int(np.prod(row_shape, dtype=np.int64)) * self._dtype.itemsize
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(
            header, {"descr": descr, "fortran_order": False, "shape": (num_rows, *row_shape)}
        )
        self._header_bytes, self._data_bytes = len(header.getvalue()), 0
        self._digest = hashlib.sha256(header.getvalue())
        self._partial = partial_path(self._final)
        self._file: BinaryIO = open(self._partial, "wb")  # noqa: SIM115 - closed in finish()
        self._file.write(header.getvalue())

    def append(self, block: NDArray[Any]) -> None:
        """Append entries, whose values must fit the column's dtype."""
        data = np.ascontiguousarray(block.astype(self._dtype, casting="same_kind", copy=False)).tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._data_bytes += len(data)

    def finish(self) -> FileInfo:
        """Sync the file, give it its final name, and return its path, size and checksum."""
        assert self._data_bytes == self._expected_bytes, (self.path, self._data_bytes, self._expected_bytes)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self._partial, self._final)
        return FileInfo(self.path, self._header_bytes + self._data_bytes, self._digest.hexdigest())


def write_columns(
    folder: Path, num_rows: int, num_key_bytes: int, blocks: Iterable[dict[str, NDArray[Any]]]
) -> list[FileInfo]:
    """Write all columns from blocks of rows, holding one block in memory at a time.

    Args:
        num_rows: rows of all blocks together.
        num_key_bytes: bytes of all keys together.
        blocks: one array per column for each block; `key_offset` starts at 0 in each block and has one entry
            more than the block has rows.

    Returns:
        Path, size and checksum of every column file.
    """
    (folder / INDEX_FOLDER).mkdir(exist_ok=True)
    lengths = {"key_offset": num_rows + 1, "key_bytes": num_key_bytes}
    writers = {name: ColumnWriter(folder, name, lengths.get(name, num_rows)) for name in COLUMN_DTYPES}
    writers["key_offset"].append(np.zeros(1, np.uint64))
    key_base = np.uint64(0)
    for block in blocks:
        for name, writer in writers.items():
            if name == "key_offset":
                writer.append(block[name][1:] + key_base)
                key_base += block[name][-1]
            else:
                writer.append(block[name])
    return [writer.finish() for writer in writers.values()]
