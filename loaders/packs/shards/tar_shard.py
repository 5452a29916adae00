"""Writing WebDataset shards: per image `<key>.jpg` (`.ppm` for pixels) and, if it has a label, `<key>.cls`.

The headers are in GNU tar's format. They are not left to `tarfile`, which takes longer for a header than all
other work on a small image takes. All that could differ between two runs (times, owners) is zero.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from loaders.common.files import start_writeback, write_atomic
from loaders.packs.image import PreparedImage
from loaders.packs.manifest import FileInfo
from loaders.packs.shards.rows import Batch

BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES  # the length of a tar is a multiple of a record
_BUFFER_BYTES = 4 << 20
_NAME_BYTES = 100
_ZEROS = bytes(BLOCK_BYTES)
# The constant fields of a header: mode, uid and gid before the size; the time between size and checksum;
# type, link name, magic, owner names, device numbers and prefix after the checksum.
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" + b"0000000\0"
_TIME = b"00000000000\0"
_AFTER_CHECKSUM = (
    b"%c" + bytes(_NAME_BYTES) + b"ustar  \0" + bytes(64) + b"0000000\0" + b"0000000\0" + bytes(167)
)
_LONG_NAME_MEMBER = b"././@LongLink"


class TarShardWriter:
    """Writes one .tar shard and, beside it, the index file for DALI."""

    def __init__(self, path: Path, index_path: Path) -> None:
        """Begin a shard.

        Args:
            path: file to write; the caller renames it when it is finished.
            index_path: path of the DALI index.
        """
        self._file: BinaryIO = open(path, "wb", buffering=0)  # noqa: SIM115 - closed in finish() or abort()
        self._index_path = index_path
        self._index_lines: list[str] = []
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._written_bytes = 0
        self._scratch = np.empty(0, np.uint8)

    def add(self, key: str, image: PreparedImage, label: int) -> int:
        """Append an image; return the offset of its encoded bytes in the shard."""
        # Pixels are stored as a portable pixmap, which common readers open. The returned offset is that of
        # the pixels, behind the header of the pixmap.
        head = b"P6\n%d %d\n255\n" % (image.width, image.height) if image.is_raw else b""
        data, suffix = (head + image.data, "ppm") if image.is_raw else (image.data, "jpg")
        name = key.encode("utf-8")
        offset = self._add_member(b"%b.%b" % (name, suffix.encode()), data)
        line = f"{suffix} {offset} {len(data)} {key}.{suffix}"
        if label >= 0:
            text = b"%d" % label
            line += f" cls {self._add_member(name + b'.cls', text)} {len(text)} {key}.cls"
        self._index_lines.append(line)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        return offset + len(head)

    def add_batch(self, batch: Batch) -> NDArray[np.int64]:
        """Append many JPEG images; return int64 [K], the offset of each in the shard."""
        from loaders.kernels.packing.tar import add_members, members_bound

        bound = members_bound(len(batch.data), len(batch.keys), len(batch.labels))
        if len(self._scratch) < bound:
            self._scratch = np.empty(bound + bound // 4, np.uint8)
        arguments = batch.data, batch.starts, batch.keys, batch.key_starts, batch.labels
        size, places = add_members(self._scratch, *arguments, _BARE_HEADERS)
        first = self._written_bytes
        places += np.array([first, first, 0])
        self._index_lines += _index_lines(batch, places)
        self._write(self._scratch[:size].data)
        offsets: NDArray[np.int64] = places[:, 0]
        return offsets

    def _add_member(self, name: bytes, data: bytes) -> int:
        buffer = self._buffer
        if len(name) > _NAME_BYTES:
            buffer += member_header(_LONG_NAME_MEMBER, len(name) + 1, b"L")
            buffer += name + bytes(1 + -(len(name) + 1) % BLOCK_BYTES)
            name = name[:_NAME_BYTES]
        buffer += member_header(name, len(data), b"0")
        offset = self._written_bytes + len(buffer)
        buffer += data
        buffer += _ZEROS[: -len(data) % BLOCK_BYTES]
        return offset

    def _flush(self) -> None:
        self._write(self._buffer)
        self._buffer = bytearray()

    def _write(self, data: bytearray | memoryview) -> None:
        self._digest.update(data)
        write_all(self._file, data)
        start_writeback(self._file, self._written_bytes, len(data))
        self._written_bytes += len(data)

    def finish(self) -> list[FileInfo]:
        """Write the end of the archive and the index; return sizes and checksums of the shard and the index.

        The caller fills in the path of the shard.
        """
        self._buffer += bytes(2 * BLOCK_BYTES)
        self._buffer += bytes(-(self._written_bytes + len(self._buffer)) % _RECORD_BYTES)
        self._flush()
        os.fsync(self._file.fileno())
        self._file.close()
        lines = [f"v1.2 {len(self._index_lines)}", *self._index_lines]
        index = ("\n".join(lines) + "\n").encode("utf-8")
        write_atomic(self._index_path, index)
        return [
            FileInfo("", self._written_bytes, self._digest.hexdigest()),
            FileInfo(self._index_path.name, len(index), hashlib.sha256(index).hexdigest()),
        ]

    def abort(self) -> None:
        """Close the file; this does nothing after `finish`."""
        self._file.close()


def _index_lines(batch: Batch, places: NDArray[np.int64]) -> Iterator[str]:
    """Yield the lines of DALI's index for the images of a batch."""
    names = batch.keys.tobytes()
    ends = batch.key_starts.tolist()
    sizes = np.diff(batch.starts).tolist()
    for i, (offset, label_at, label_bytes) in enumerate(places.tolist()):
        key = names[ends[i] : ends[i + 1]].decode("utf-8")
        line = f"jpg {offset} {sizes[i]} {key}.jpg"
        yield f"{line} cls {label_at} {label_bytes} {key}.cls" if label_bytes else line


def member_header(name: bytes, size_bytes: int, kind: bytes) -> bytes:
    """Return the 512-byte header of a tar member.

    Args:
        name: at most 100 bytes.
        size_bytes: size of the data, below 8 GiB.
        kind: b"0" for a file, b"L" for a GNU long name.
    """
    size = b"%011o\0" % size_bytes
    before, after, base = _PARTS[kind]
    checksum = base + sum(name) + sum(size)
    return b"".join((name.ljust(_NAME_BYTES, b"\0"), before, size, _TIME, b"%06o\0 " % checksum, after))


# For each kind of member: the constant bytes before the size, those after the checksum, and the sum of all
# constant bytes. A header's checksum counts its own eight bytes as spaces.
_PARTS = {
    kind: (
        _BEFORE_SIZE,
        _AFTER_CHECKSUM % kind,
        sum(_BEFORE_SIZE) + sum(_TIME) + sum(_AFTER_CHECKSUM % kind) + 8 * ord(" "),
    )
    for kind in (b"0", b"L")
}


# Headers of a file and of a long name, for the compiled writer, which fills in what differs between members.
_BARE_HEADERS = np.frombuffer(
    b"".join(
        name.ljust(_NAME_BYTES, b"\0") + before + bytes(12) + _TIME + bytes(8) + after
        for name, (before, after, _) in ((b"", _PARTS[b"0"]), (_LONG_NAME_MEMBER, _PARTS[b"L"]))
    ),
    np.uint8,
).reshape(2, BLOCK_BYTES)


def write_all(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` to an unbuffered file, each `write` of which may take only a part."""
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]
