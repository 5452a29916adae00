"""Remove the texts and the colour profile of a PNG, which do not affect its pixels.

Pillow inflates every text chunk and refuses an image whose texts are large. Texts of up to 64 KiB that may
hold an orientation stay.

Source: W3C, Portable Network Graphics, third edition, chapters 5 and 11.
"""

from __future__ import annotations

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEPT_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MAX_KEPT_BYTES = 1 << 16
_FRAME_BYTES = 12  # length, type and CRC-32 around the data of a chunk
_DEPTH_AT, _COLOUR_AT, _RGB = 24, 25, 2


def is_png(data: bytes) -> bool:
    """Tell whether data begins like a PNG."""
    return data.startswith(SIGNATURE)


def is_rgb_of_16_bit(data: bytes) -> bool:
    """Tell whether data is an RGB PNG with 16 bits per sample."""
    return is_png(data) and data[_DEPTH_AT:_COLOUR_AT] == b"\x10" and data[_COLOUR_AT] == _RGB


def ends(data: bytes) -> bool:
    """Tell whether a PNG contains its end chunk, so that it was not cut off."""
    return b"IEND" in data[-64:] or b"IEND" in data


def without_texts(data: bytes) -> bytes:
    """Return a PNG without colour profile and texts, except short texts that may hold an orientation."""
    position, end = len(SIGNATURE), len(data)
    pieces, first = [], 0
    while position + _FRAME_BYTES <= end:
        stop = position + _FRAME_BYTES + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if stop > end:
            break  # a cut-off chunk at the end stays
        if kind == b"iCCP" or (kind in _TEXTS and not _is_kept(data, position + 8, stop)):
            pieces.append(data[first:position])
            first = stop
        position = stop
    return b"".join([*pieces, data[first:]]) if pieces else data


def _is_kept(data: bytes, body: int, stop: int) -> bool:
    return stop - body <= _MAX_KEPT_BYTES and data.startswith(_KEPT_KEYWORDS, body)
