"""Read the few facts in a JPEG's markers that decide whether its bytes can be copied into a pack."""

from __future__ import annotations

import re
from typing import NamedTuple

from loaders.packs.reasons import Reason

_SOI, _EOI, _SOS, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
# Segments whose content is not read: tables, restart intervals, comments and most application data.
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE}) | frozenset(range(0xE0, 0xF0)) - {_APP1, _APP2, _APP14}
_BASELINE_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential, both Huffman-coded
_ORIENTATION_TAG = 0x0112
_NUMBER_BYTES = {1: 1, 3: 2, 4: 4}  # size in bytes of the TIFF types byte, short and long
_XMP, _ICC = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
# Pillow's own pattern for the orientation in XMP.
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_RGB_IDS = b"RGB"
_DHT, _DQT = 0xC4, 0xDB
_BEGIN, _MARKER, _MAX_JUNK_BYTES = b"\xff\xd8", re.compile(rb"\xff[\xc0-\xfe]"), 256
# Sampling factors of luma, across and down, for which TurboJPEG's API has a name if chroma's factors are 1.
_USUAL_SAMPLINGS = frozenset({0x11, 0x12, 0x21, 0x22, 0x14, 0x41})


class JpegError(ValueError):
    """A header that is cut off or damaged.

    Attributes:
        reason: which of the two.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        """Store the reason, and a message that says what is wrong."""
        super().__init__(text)
        self.reason = reason


class JpegHeader(NamedTuple):
    """Facts of a JPEG.

    Attributes:
        height, width: pixels.
        num_components: 1, 3 or 4 in a JPEG that can be decoded.
        precision: bits per sample.
        is_plain: whether it is baseline or extended sequential, of 8 bits, gray or YCbCr of usual sampling,
            and with its own tables, so that libjpeg-turbo, nvJPEG and FFCV all decode it alike.
        orientation: value in EXIF or else XMP, 1 to 8; 1 if there is none or it is out of range.
    """

    height: int
    width: int
    num_components: int
    precision: int
    is_plain: bool
    orientation: int


def is_jpeg(data: bytes) -> bool:
    """Tell whether data begins like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def without_junk(data: bytes) -> bytes | None:
    """Return a JPEG without up to 256 bytes of junk beside its start marker; None if no JPEG is found."""
    if data[:2] == _BEGIN:
        found = _MARKER.search(data, 2, 2 + _MAX_JUNK_BYTES)
        return None if found is None else _BEGIN + data[found.start() :]
    at = data.find(_BEGIN + b"\xff", 0, _MAX_JUNK_BYTES)
    return data[at:] if at > 0 else None


class _Metadata:
    """The facts in the application segments of a JPEG."""

    def __init__(self) -> None:
        self.exif = b""
        self.xmp = b""
        self.transform: int | None = None
        self._profile_parts: list[tuple[int, int]] = []

    def add(self, marker: int, body: bytes) -> None:
        """Collect the facts that one segment holds."""
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            self.exif += body[6:]  # a block that is too long for one segment goes on in the next
        elif marker == _APP1 and body.startswith(_XMP):
            self.xmp = body[len(_XMP) :]
        elif marker == _APP2 and body.startswith(_ICC) and len(body) >= len(_ICC) + 2:
            self._profile_parts.append((body[len(_ICC)], body[len(_ICC) + 1]))
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            self.transform = body[11]

    @property
    def orientation(self) -> int:
        """The orientation in EXIF, or in XMP if EXIF has none; 1 if it is missing or not 1 to 8."""
        found = _exif_orientation(self.exif)
        if found is None and (match := _XMP_ORIENTATION.search(self.xmp)):
            found = int(match[1])
        return found if found is not None and 1 <= found <= 8 else 1

    @property
    def has_whole_profile(self) -> bool:
        """Whether the parts of the colour profile are numbered correctly; decoders warn otherwise."""
        parts = sorted(self._profile_parts)
        return parts == [(number, len(parts)) for number in range(1, len(parts) + 1)]


def parse_jpeg_header(data: bytes) -> JpegHeader:
    """Read the markers up to the first scan.

    Raises:
        JpegError: the header is cut off or damaged; the text says how.
    """
    position, frame, metadata = 2, None, None
    has_codes = has_steps = False
    end = len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:
            raise JpegError(Reason.DAMAGED, f"no marker at byte {position}")
        marker = data[position + 1]
        if marker in _SKIPPED:
            length = data[position + 2] << 8 | data[position + 3]
            position += 2 + length
            if length < 2 or position > end:
                raise _cut(end)
            has_codes, has_steps = has_codes or marker == _DHT, has_steps or marker == _DQT
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
            raise _cut(end)
        if marker == _SOS:
            break
        if marker in _FRAMES:
            frame = _parse_frame(data, marker, body, stop)
        else:
            metadata = metadata or _Metadata()
            metadata.add(marker, data[body:stop])
        position = stop
    else:
        raise _cut(end)
    if frame is None:
        raise JpegError(Reason.DAMAGED, "no frame header before the first scan")
    if not (has_codes and has_steps):  # decoders may use tables of the previous image
        frame = frame._replace(is_plain=False)
    if metadata is None:
        return frame
    if not metadata.has_whole_profile:
        raise JpegError(Reason.DAMAGED, "the parts of its ICC profile are not in order")
    is_plain = frame.is_plain and (frame.num_components == 1 or metadata.transform != 0)
    return frame._replace(is_plain=is_plain, orientation=metadata.orientation)


def _cut(end: int) -> JpegError:
    return JpegError(Reason.TRUNCATED, f"the file ends inside its JPEG header ({end} bytes)")


def _parse_frame(data: bytes, marker: int, body: int, stop: int) -> JpegHeader:
    if stop - body < 6 or stop - body < 6 + 3 * data[body + 5]:
        raise JpegError(Reason.DAMAGED, "frame header too short")
    height, width = data[body + 1] << 8 | data[body + 2], data[body + 3] << 8 | data[body + 4]
    if height == 0 or width == 0:
        raise JpegError(Reason.DAMAGED, f"{width}x{height} pixels")
    precision, num_components = data[body], data[body + 5]
    is_plain = marker in _BASELINE_FRAMES and precision == 8
    if num_components == 3:
        # Both chroma components have sampling factors 1 x 1, and luma has factors that every decoder knows.
        are_usual = data[body + 10] == data[body + 13] == 0x11 and data[body + 7] in _USUAL_SAMPLINGS
        is_plain = is_plain and are_usual and data[body + 6 : body + 15 : 3] != _RGB_IDS
    else:
        is_plain = is_plain and num_components == 1
    return JpegHeader(height, width, num_components, precision, is_plain, 1)


def _exif_orientation(tiff: bytes) -> int | None:
    """Return the orientation in an EXIF block; None if it has none or is damaged (viewers ignore it too)."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    little = order == "little"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if little else "big")

    directory = number(4, 4)
    for index in range(min(number(directory, 2), 512)):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(tiff):
            return None
        if number(entry, 2) == _ORIENTATION_TAG:
            return number(entry + 8, _NUMBER_BYTES.get(number(entry + 2, 2), 2))
    return None
