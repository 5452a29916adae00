"""Decode JPEGs that cause warnings, as lenient readers do.

A JPEG that Pillow decodes is kept, unless more than a hundredth of its pixels is lost: if a file ends within
its scan, decoders fill the rest with gray. To find how much is lost, the file is decoded twice, with
different bytes appended: the pixels that differ are not determined by the file.

Source: ITU-T T.81, annex B (markers) and G (progressive scans).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.jpeg.turbojpeg import MAX_SCANS, Decompressor
from loaders.packs.images.odd_formats import DecodedImage, decode_any
from loaders.packs.reasons import BadImage, Reason

MAX_LOST = 0.01  # largest share of the pixels that may be lost
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
_SOS, _EOI = 0xDA, 0xD9
_UNIT_PX = 16  # side of the largest minimum coded unit with usual subsampling


class _Scans(NamedTuple):
    """Facts about the scans of a JPEG, from its markers.

    Attributes:
        stop: where the entropy-coded data of the last scan ends.
        num_scans: number of scans.
        is_complete: whether the scan headers of a progressive JPEG cover every bit of every coefficient; True
            for other JPEGs.
    """

    stop: int
    num_scans: int
    is_complete: bool


def repair_jpeg(data: bytes, complaint: str, max_pixels: int) -> DecodedImage:
    """Decode a JPEG that a strict decoder complains about.

    Args:
        complaint: message of that decoder.
        max_pixels: larger images are refused.

    Raises:
        BadImage: it is too large, has too many scans, cannot be decoded or has lost over 1% of its pixels.
    """
    scans = find_scans(data)
    if scans.num_scans > MAX_SCANS:
        raise BadImage(
            Reason.DAMAGED, f"damaged JPEG: {scans.num_scans} scans, at most {MAX_SCANS} are decoded"
        )
    lost = lost_share(data, scans, max_pixels)
    if lost > MAX_LOST:
        raise BadImage(Reason.TRUNCATED, f"truncated: {complaint}")
    whole = _entropy_coded(data, scans) + _END
    for candidate in (data, whole):
        try:
            decoded = decode_any(candidate, max_pixels)
        except BadImage as error:
            refused = error
            continue
        return decoded._replace(messages=(complaint, *decoded.messages))
    if refused.reason == Reason.TOO_LARGE:
        raise refused
    raise BadImage(Reason.DAMAGED, f"damaged JPEG: {complaint}")


def lost_share(data: bytes, scans: _Scans, max_pixels: int) -> float:
    """Return the share of pixels that a JPEG has lost; 1 if scans are missing, 0 if libjpeg-turbo fails."""
    if not scans.num_scans or not scans.is_complete:
        return 1.0
    noise = np.random.Generator(np.random.PCG64(0)).integers(1, 255, (8, 48), np.uint8)
    tail = b"".join(bytes(row) + bytes([0xFF, 0xD0 + i]) for i, row in enumerate(noise.tolist()))
    kept = _entropy_coded(data, scans)
    decoder = Decompressor(is_strict=False)
    try:
        one, other = (decoder.decode(kept + end, max_pixels=max_pixels) for end in (_END, tail + _END))
    except ValueError:
        return 0.0  # libjpeg-turbo refuses it, so Pillow decides
    return _differing_share(one, other)


def _entropy_coded(data: bytes, scans: _Scans) -> bytes:
    """Return a JPEG up to the end of its last scan, without 0xFF bytes whose second byte is missing."""
    return data[: scans.stop].rstrip(b"\xff")


def _differing_share(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the share of the pixels from the first unit that differs to the end, in scan order."""
    differ = (one != other).any(axis=2)
    rows = np.flatnonzero(differ.any(axis=1))
    if not len(rows):
        return 0.0
    height, width = differ.shape
    first = int(rows[0])
    unit = differ[first : first + _UNIT_PX]
    left = int(np.flatnonzero(unit.any(axis=0))[0])
    below = max(0, height - first - len(unit))
    lost = len(unit) * (width - left) + below * width
    return float(lost / (height * width))


def find_scans(data: bytes) -> _Scans:
    """Find the scans by walking over the markers like a decoder, which skips bytes between markers."""
    position, stop, count = 2, len(data), 0
    is_progressive, num_components = False, 0
    bits_left: dict[int, NDArray[np.int64]] = {}
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = data[found.start() + 1], found.end()
        if marker == _EOI:
            break
        if marker in _STANDALONE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        body, after = position + 2, position + length
        if length < 2 or after > len(data):
            break
        if marker in _FRAMES and length >= 8:
            is_progressive, num_components = marker in _PROGRESSIVE, data[body + 5]
        if marker == _SOS:
            count += 1
            _note_bits(data[body:after], bits_left)
            end = _END_OF_SCAN.search(data, after)
            stop = len(data) if end is None else end.start()
            if not is_progressive and len(bits_left) >= num_components:
                break
            after = stop
        position = after
    known = [left for left in bits_left.values() if (left == 0).all()]
    is_complete = not is_progressive or len(known) >= num_components
    return _Scans(stop, count, is_complete)


def _note_bits(heading: bytes, bits_left: dict[int, NDArray[np.int64]]) -> None:
    """Record how many low bits each coefficient lacks after a scan: int64 [64] per component."""
    count = heading[0] if heading else 0
    if len(heading) < 4 + 2 * count:
        return
    first, last, low = heading[-3], heading[-2], heading[-1] & 15
    for i in range(count):
        left = bits_left.setdefault(heading[1 + 2 * i], np.full(64, 16, np.int64))
        left[first : last + 1] = low
