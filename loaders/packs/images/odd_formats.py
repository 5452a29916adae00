"""The slow path: images that are no JPEG, are in CMYK or need repair, decoded by Pillow to RGB."""

from __future__ import annotations

import io
import struct
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from loaders.packs.images.decoder_messages import decoder_messages, stderr_lines
from loaders.packs.images.image_kinds import extra_of, unread_kind
from loaders.packs.images.png_chunks import ends, is_png, is_rgb_of_16_bit, without_texts
from loaders.packs.images.to_rgb import to_rgb
from loaders.packs.reasons import BadImage, Reason

# Only bitmaps: a packer must not run the interpreters that formats such as EPS and WMF need.
FORMATS = (
    "JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "PCX", "SGI", "DDS", "QOI",
)  # fmt: skip
_TRANSPOSE = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}
_ORIENTATION_TAG = 0x0112
# What Pillow's decoders raise on damaged data.
_PILLOW_ERRORS = (
    OSError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class DecodedImage(NamedTuple):
    """An image as Pillow decodes it.

    Attributes:
        pixels: uint8 [H, W, 3], RGB, not yet turned upright.
        orientation: the EXIF value, 1 to 8, that the caller still has to apply.
        is_rotated: whether the file says that the image is not stored upright.
        is_converted: whether the file is anything but a JPEG that Pillow opens as gray or RGB.
        num_frames: number of frames or pages, of which the first is decoded; 1 for the JPEGs of an MPO.
        messages: what decoders warned about.
    """

    pixels: NDArray[np.uint8]
    orientation: int
    is_rotated: bool
    is_converted: bool
    num_frames: int
    messages: tuple[str, ...]


def decode_any(data: bytes, max_pixels: int) -> DecodedImage:
    """Decode the first frame of any bitmap to RGB, by `to_rgb`.

    Raises:
        BadImage: no image, or one that is damaged, too large, or of an unknown format or range of samples.
    """
    extra = extra_of(data)
    formats = _known_formats() if extra is None else (extra.pillow_name,)
    name = "image" if extra is None else extra.name.partition(" ")[2]
    try:
        with decoder_messages() as messages:
            decoded = _decode(without_texts(data) if is_png(data) else data, formats, max_pixels, messages)
    except Image.DecompressionBombError:
        raise BadImage(Reason.TOO_LARGE, "more pixels than Pillow's decompression bomb limit") from None
    except UnidentifiedImageError:
        if extra is not None:
            raise BadImage(Reason.DAMAGED, f"damaged {name}: its decoder does not recognise it") from None
        raise unread_kind(data) from None
    except _PILLOW_ERRORS as error:
        if is_png(data) and not ends(data):
            raise BadImage(Reason.TRUNCATED, f"truncated PNG: {error}") from None
        raise BadImage(Reason.DAMAGED, f"damaged or truncated {name}: {error}") from None
    return decoded._replace(messages=tuple(messages))


def _decode(data: bytes, formats: tuple[str, ...], max_pixels: int, messages: list[str]) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height} pixels"
            raise BadImage(Reason.TOO_LARGE, f"{size}, over the limit of {max_pixels} pixels")
        tagged = _orientation(image)
        frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        # libtiff writes its warnings to standard error.
        with stderr_lines(messages) if image.format == "TIFF" else nullcontext():
            image.load()
        # Decoders of some formats rotate the image themselves and then reset its orientation.
        orientation = _orientation(image)
        is_converted = image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L")
        pixels = to_rgb(image, is_rgb_of_16_bit(data))
    return DecodedImage(pixels, orientation, tagged != 1 or orientation != 1, is_converted, frames, ())


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if it is absent, out of range or unreadable (viewers do alike)."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _PILLOW_ERRORS:
        return 1
    return int(value) if value in _TRANSPOSE else 1


@cache
def _known_formats() -> tuple[str, ...]:
    """Return the members of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation (1 to 8) to uint8 [H, W, 3]."""
    turn = _TRANSPOSE.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
