"""A .zip of a folder tree, read in place: its directory is read once, then each member by its offset."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator

from loaders.common.errors import UserError
from loaders.packs.sources.bytes_at import read_at
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size, printable
from loaders.packs.sources.tree import ArchiveSource, TreeListing

_LOCAL_HEADER = struct.Struct("<4s5HIIIHH")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED_FLAG = 1
_UTF8_FLAG = 1 << 11
_WINDOWS = 0  # value of `create_system` for FAT, which writers on Windows use
_BLOCK_BYTES = 1 << 16
_DAMAGE = (ValueError, IndexError, struct.error)  # raised by zipfile for damage; IndexError for an empty name


class ZipSource(ArchiveSource):
    """The files below one folder of a zip."""

    _num_guessed, _first_guessed = 0, ""

    def items(self) -> Iterator[SourceItem]:
        """List the members and yield those below the root in the order of a folder walk."""
        listing = TreeListing(self._name, self._inside)
        self._num_guessed = 0
        try:
            with zipfile.ZipFile(self._path) as archive:
                num_bytes = self._path.stat().st_size
                members = archive.infolist()
                # Some writers on Windows separate folders by "\", which on other systems is part of a name.
                windows = not any("/" in info.filename for info in members)
                for info in members:
                    if not 0 <= info.header_offset < num_bytes:
                        raise zipfile.BadZipFile(f"a member at byte {info.header_offset}")
                    name = self._decoded(info)
                    if windows or info.create_system == _WINDOWS:
                        name = name.replace("\\", "/")
                    if not name.endswith("/"):
                        place = info.file_size, info.header_offset
                        listing.add(SourceItem(name, "", None, *place, _problem(info)))
        except (zipfile.BadZipFile, OSError, NotImplementedError, *_DAMAGE) as error:
            what = f"is not a zip, or is damaged or cut off ({error})"
            raise UserError(f"{self._name} {what}: fetch it again") from None
        return listing.items()

    def _decoded(self, info: zipfile.ZipInfo) -> str:
        """Return a member's name, as UTF-8 if possible; `zipfile` takes unflagged names for code page 437."""
        if info.flag_bits & _UTF8_FLAG or info.filename.isascii():
            return info.filename
        try:
            # macOS writes UTF-8 without the flag; names in other code pages are hardly ever valid UTF-8.
            return info.filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            self._num_guessed += 1
            self._first_guessed = self._first_guessed or info.filename
            return info.filename

    def notes(self) -> list[str]:
        """Return the notes on names for the summary."""
        if not self._num_guessed:
            return []
        return [
            f"{self._num_guessed:,} names in {self._name} are in an unknown code page and read as 437, e.g. "
            f"{printable(self._first_guessed)}: pack the unpacked folder if they are wrong"
        ]

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a member."""
        header = read_at(self._descriptor, item.position, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise UserError(f"{self._name} changed while packing: pack again into a new --out")
        fields = _LOCAL_HEADER.unpack(header)
        method, crc, name_bytes, extra_bytes = fields[3], fields[6], fields[9], fields[10]
        first = item.position + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if method == _DEFLATED:
            data = self._inflate(item, first)
        else:
            data = read_at(self._descriptor, first, item.size_bytes)
        check_size(self._name, item, len(data))
        # A writer that streams puts the checksum behind the data, and 0 into this header.
        if crc and zlib.crc32(data) != crc:
            raise UnreadableItem("damaged in its zip: the checksum differs")
        return data

    def _inflate(self, item: SourceItem, first: int) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        parts, position = [], first
        left = item.size_bytes + 1
        try:
            while not inflater.eof and left > 0:
                block = read_at(self._descriptor, position, min(_BLOCK_BYTES, item.size_bytes + 1024))
                if not block:
                    break
                position += len(block)
                parts.append(inflater.decompress(inflater.unconsumed_tail + block, left))
                left -= len(parts[-1])
        except zlib.error as error:
            raise UnreadableItem(f"damaged in its zip: {error}") from None
        data = b"".join(parts)
        if len(data) != item.size_bytes:
            raise UnreadableItem(f"damaged in its zip: {len(data)} of {item.size_bytes} bytes")
        return data


def _problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED_FLAG:
        return "encrypted in its zip"
    if info.compress_type not in (_STORED, _DEFLATED):
        return f"compressed with zip method {info.compress_type}, known are {_STORED} and {_DEFLATED}"
    return None
