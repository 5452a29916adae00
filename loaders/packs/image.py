"""What is done to one image on its way into a pack: copy, re-encode, or refuse with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loaders.errors import UserError
from loaders.packs.jpeg_header import JpegHeader, is_jpeg, parse_jpeg_header
from loaders.packs.odd_formats import BadImage, decode_any, upright
from loaders.packs.resize import fit_inside, resize_antialiased

DEFAULT_QUALITY = 95
# Sides over this do not fit FFCV's metadata, and no JPEG has them.
MAX_SIDE_PX = 65_535
_NO_SUBSAMPLING_FROM_QUALITY = 95


class Action(IntFlag):
    """What was done to an image; a column of the index. 0 = bytes copied."""

    REENCODED = 1
    RESIZED = 2
    ROTATED = 4  # the EXIF orientation was applied
    CONVERTED = 8  # another format or colour space than baseline gray or YCbCr JPEG
    FIRST_FRAME = 16  # of an animation


@dataclass(frozen=True)
class ImagePolicy:
    """How images are packed.

    Attributes:
        max_side: longest side in pixels; larger images are shrunk. None leaves every size.
        quality: JPEG quality 1 to 100; given, every image is encoded anew. None copies whatever can be
            copied and encodes the rest with 95.
        max_pixels: larger images are refused before they are decoded (decompression bombs).
    """

    max_side: int | None = None
    quality: int | None = None
    max_pixels: int = 89_478_485

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_side is not None and not 1 <= self.max_side <= MAX_SIDE_PX:
            raise UserError(f"--max-side {self.max_side}: expected 1 to {MAX_SIDE_PX} pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels {self.max_pixels}: expected at least 1")


COPIED = Action(0)


class PreparedImage(NamedTuple):
    """An image as it goes into a shard: JPEG bytes, size in pixels, what was done to it."""

    data: bytes
    height: int
    width: int
    action: Action


def prepare_image(data: bytes, policy: ImagePolicy) -> PreparedImage:
    """Check an image completely and bring it into the form in which it is packed.

    Args:
        data: the file's bytes, in any format.
        policy: what the pack wants.

    Returns:
        The same bytes where they are a baseline gray or YCbCr JPEG within the policy, else a new JPEG.

    Raises:
        BadImage: no image, or one that cannot be decoded without an error; the text is the reason.
    """
    if not is_jpeg(data):
        if not data:
            raise BadImage("an empty file")
        return _reencode(*_decode_cold(data, policy), policy)
    try:
        header = parse_jpeg_header(data)
    except ValueError as error:
        raise BadImage(str(error)) from None
    if header.height * header.width > policy.max_pixels:
        raise BadImage(f"{header.width}x{header.height} pixels, over the limit of {policy.max_pixels} in all")
    shrinks = policy.max_side is not None and max(header.height, header.width) > policy.max_side
    try:
        if not header.is_plain or header.orientation != 1:
            return _reencode(*_decode_odd_jpeg(data, header, policy), policy)
        if policy.quality is None and not shrinks:
            check_decodes(data)
            return PreparedImage(data, header.height, header.width, COPIED)
        return _reencode_jpeg(data, header, policy)
    except ValueError as error:
        if "subsampling" in str(error):  # legal, but unknown to TurboJPEG's API and so to the loaders
            return _reencode(*_decode_cold(data, policy), policy)
        raise BadImage(_decoder_reason(error)) from None


def check_decodes(data: bytes) -> None:
    """Decode a JPEG for its errors only.

    All entropy-coded data is read, which is where every error of a JPEG shows; the inverse transforms are
    made at 1/8 size and for the gray component alone, which saves a quarter of the time and more.

    Raises:
        ValueError: any warning or error of the decoder.
    """
    simplejpeg.decode_jpeg(data, colorspace="gray", min_height=1, min_width=1, min_factor=8)


def _decoder_reason(error: ValueError) -> str:
    text = str(error)
    return f"truncated: {text}" if "Premature end of JPEG" in text else f"damaged JPEG: {text}"


def _reencode_jpeg(data: bytes, header: JpegHeader, policy: ImagePolicy) -> PreparedImage:
    """Decode (scaled where it shrinks), resize and encode a plain JPEG."""
    height, width = fit_inside(header.height, header.width, policy.max_side)
    if (height, width) == (header.height, header.width):
        pixels, action = simplejpeg.decode_jpeg(data), COPIED
    else:
        # The DCT scaling ends at or above the target; the rest is an antialiased resize.
        pixels, action = simplejpeg.decode_jpeg(data, min_height=height, min_width=width), Action.RESIZED
    return _encode(resize_antialiased(pixels, height, width), action, policy)


def _decode_odd_jpeg(
    data: bytes, header: JpegHeader, policy: ImagePolicy
) -> tuple[NDArray[np.uint8], Action]:
    """Decode a JPEG that is not plain or not upright, with the strictness of the fast path."""
    if header.num_components == 4:
        # Pillow knows Adobe's inverted inks, but not every damage: libjpeg-turbo checks first.
        simplejpeg.decode_jpeg(data, colorspace="CMYK")
        return _decode_cold(data, policy)
    action = COPIED if header.orientation == 1 else Action.ROTATED
    return upright(simplejpeg.decode_jpeg(data), header.orientation), action


def _decode_cold(data: bytes, policy: ImagePolicy) -> tuple[NDArray[np.uint8], Action]:
    """Decode what libjpeg-turbo does not: other formats and colour spaces, turned upright."""
    decoded = decode_any(data, policy.max_pixels)
    action = COPIED
    if decoded.orientation != 1:
        action |= Action.ROTATED
    if decoded.is_converted:
        action |= Action.CONVERTED
    if decoded.num_frames > 1:
        action |= Action.FIRST_FRAME
    return upright(decoded.pixels, decoded.orientation), action


def _reencode(pixels: NDArray[np.uint8], action: Action, policy: ImagePolicy) -> PreparedImage:
    height, width = fit_inside(pixels.shape[0], pixels.shape[1], policy.max_side)
    if max(height, width) > MAX_SIDE_PX:
        raise BadImage(f"{width}x{height} pixels: no JPEG has a side over {MAX_SIDE_PX}; give --max-side")
    if (height, width) != pixels.shape[:2]:
        action |= Action.RESIZED
    return _encode(resize_antialiased(pixels, height, width), action, policy)


def _encode(pixels: NDArray[np.uint8], action: Action, policy: ImagePolicy) -> PreparedImage:
    quality = DEFAULT_QUALITY if policy.quality is None else policy.quality
    subsampling = "444" if quality >= _NO_SUBSAMPLING_FROM_QUALITY else "420"
    data = simplejpeg.encode_jpeg(pixels, quality, "rgb", subsampling)
    return PreparedImage(data, pixels.shape[0], pixels.shape[1], action | Action.REENCODED)
