"""Listing the members of a tar by its headers alone.

A tar has no directory, so every header must be read. The standard library takes about 17 us for each header,
longer than packing a small image. This reader knows ustar, GNU long names, and pax headers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.reasons import Reason
from loaders.packs.sources.item import SourceItem

BLOCK_BYTES = 512
_MAX_DIGITS = 18
_FILE_TYPES = b"0\x007"
_FOLDER = b"5"
# Types of members, besides folders, that have no bytes behind their header.
_WITHOUT_BYTES = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "pipe"}


def list_members(path: Path) -> Iterator[SourceItem]:
    """Yield the members of a tar except its folders, in the order of the archive.

    Raises:
        UserError: the file is no tar, or is damaged or cut off. A tar that is cut off may lack any number of
            images, so it is not packed as if it were whole.
    """
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UserError(f"{path} is empty: expected a tar of images") from None
        with data:
            yield from _walk_headers(path, data)


def _walk_headers(path: Path, data: mmap.mmap) -> Iterator[SourceItem]:
    position, end = 0, len(data)
    long_name: bytes | None = None
    pax: dict[str, bytes] = {}
    while position + BLOCK_BYTES <= end:
        header = data[position : position + BLOCK_BYTES]
        if header[0] == 0 and header.count(0) == BLOCK_BYTES:
            return
        size = _checked_size(path, header, position)
        kind, first = header[156:157], position + BLOCK_BYTES
        body = data[first : first + size] if kind in (b"L", b"x", b"K", b"g") else b""
        if kind == b"L":
            long_name = body.rstrip(b"\0")
        elif kind == b"x":
            pax = _parse_pax(path, body)
        elif kind not in (b"K", b"g"):
            size = _pax_size(path, pax, size)
            name = pax.get("path") or long_name or _short_name(header)
            text = name.decode("utf-8", "surrogateescape")
            if kind in _FILE_TYPES and not (kind == b"\0" and name.endswith(b"/")):
                problem = "a sparse member" if any(key.startswith("GNU.sparse") for key in pax) else None
                yield SourceItem(text, "", None, size, first, problem)
            elif kind == _FOLDER:
                size = 0
            elif kind in _WITHOUT_BYTES:
                size, problem = 0, f"a {_WITHOUT_BYTES[kind]} in a tar: unpack it and pack the folder"
                yield SourceItem(text, "", None, size, first, problem, Reason.NOT_A_FILE)
            else:
                yield SourceItem(text, "", None, size, first, f"a tar member of type {kind!r}")
            long_name, pax = None, {}
        position = first + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    raise UserError(
        f"{path} is cut off at byte {end} (no end mark follows the last member): fetch it again, or unpack "
        f"what is there and pack the folder"
    )


def _checked_size(path: Path, header: bytes, position: int) -> int:
    try:
        stored = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        right = stored == sum(header[:148]) + sum(header[156:]) + 8 * 32
        field = header[124:136]
        if field[0] & 0x80:  # a number in base 256, for sizes over 8 GiB; negative if the first byte is 255
            sign = field[0] if field[0] == 0xFF else field[0] & 0x7F
            size = int.from_bytes(bytes([sign]) + field[1:], "big", signed=True)
        else:
            size = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        right, size = False, 0
    if not right:
        what = "is not a tar" if position == 0 else f"is damaged at byte {position}"
        raise UserError(f"{path} {what} (bad header checksum): expected an uncompressed .tar of images")
    if not 0 <= size < 10**_MAX_DIGITS:
        raise UserError(
            f"{path} is damaged at byte {position}: a header gives the size {size}; make the tar again"
        )
    return size


def _pax_size(path: Path, pax: dict[str, bytes], size: int) -> int:
    """Return the size in a pax header, or `size` without one; pax values have no checksum, so check it."""
    text = pax.get("size", b"%d" % size)
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise UserError(f"{path} is damaged: a pax header gives the size {text!r}; make the tar again")
    return int(text)


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # POSIX: a prefix field holds the folders of a long name
        prefix = header[345:500].split(b"\0", 1)[0]
        return prefix + b"/" + name if prefix else name
    return name


def _parse_pax(path: Path, body: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    position = 0
    try:
        while position < len(body) and body[position]:
            space = body.index(b" ", position)
            stop = position + int(body[position:space])
            if not space < stop <= len(body):
                raise ValueError("record length")
            key, _, value = body[space + 1 : stop - 1].partition(b"=")
            records[key.decode("utf-8", "replace")] = value
            position = stop
    except ValueError:
        raise UserError(f"{path} is damaged: a pax header cannot be read; make the tar again") from None
    return records
