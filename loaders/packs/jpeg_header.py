"""The few facts in a JPEG's markers that decide whether its bytes can be copied into a pack."""

from __future__ import annotations

from typing import NamedTuple

_SOI, _EOI, _SOS, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
# Tables, comments and application data that say nothing about how to decode.
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE}) | frozenset(range(0xE0, 0xF0)) - {0xE1, 0xEE}
_BASELINE_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential, both Huffman-coded
_ORIENTATION_TAG = 0x0112


class JpegHeader(NamedTuple):
    """Facts of a JPEG: size in pixels, components, and whether any decoder reads it as it stands.

    `orientation` is the EXIF value 1 to 8, 1 where there is none. `is_plain` says: baseline, 8 bit, gray or
    YCbCr, so that libjpeg-turbo, nvJPEG and FFCV all decode it to the same picture.
    """

    height: int
    width: int
    num_components: int
    is_plain: bool
    orientation: int


def is_jpeg(data: bytes) -> bool:
    """Tell whether data begins like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def parse_jpeg_header(data: bytes) -> JpegHeader:
    """Read the markers up to the first scan.

    Raises:
        ValueError: the header is cut off or damaged; the text says where.
    """
    position, orientation, is_ycc, frame = 2, 1, True, None
    end = len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:
            raise ValueError(f"damaged JPEG: no marker at byte {position}")
        marker = data[position + 1]
        if marker in _SKIPPED:
            length = data[position + 2] << 8 | data[position + 3]
            position += 2 + length
            if length < 2 or position > end:
                raise ValueError(f"truncated: the file ends inside its JPEG header ({end} bytes)")
            continue
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        length = data[position + 2] << 8 | data[position + 3]
        body, stop = position + 4, position + 2 + length
        if length < 2 or stop > end:
            raise ValueError(f"truncated: the file ends inside its JPEG header ({end} bytes)")
        if marker == _SOS:
            break
        if marker in _FRAMES:
            frame = _parse_frame(data, marker, body, stop)
        elif marker == _APP1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : stop])
        elif marker == _APP14 and data[body : body + 5] == b"Adobe" and stop - body >= 12:
            is_ycc = data[body + 11] != 0
        position = stop
    else:
        raise ValueError(f"truncated: the file ends inside its JPEG header ({end} bytes)")
    if frame is None:
        raise ValueError("damaged JPEG: no frame header before the first scan")
    height, width, num_components, is_baseline, has_rgb_ids = frame
    is_plain = is_baseline and (num_components == 1 or (num_components == 3 and is_ycc and not has_rgb_ids))
    return JpegHeader(height, width, num_components, is_plain, orientation)


def _parse_frame(data: bytes, marker: int, body: int, stop: int) -> tuple[int, int, int, bool, bool]:
    if stop - body < 6 or stop - body < 6 + 3 * data[body + 5]:
        raise ValueError("damaged JPEG: frame header too short")
    height, width = data[body + 1] << 8 | data[body + 2], data[body + 3] << 8 | data[body + 4]
    if height == 0 or width == 0:
        raise ValueError(f"damaged JPEG: {width}x{height} pixels")
    num_components = data[body + 5]
    ids = bytes(data[body + 6 + 3 * i] for i in range(num_components))
    return height, width, num_components, marker in _BASELINE_FRAMES and data[body] == 8, ids == b"RGB"


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation of an EXIF block; 1 where it has none or cannot be read, as viewers do."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    little = order == "little"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if little else "big")

    directory = number(4, 4)
    for index in range(min(number(directory, 2), 512)):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(tiff):
            return 1
        if number(entry, 2) == _ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
