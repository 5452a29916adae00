"""The cold path: images that are no plain baseline JPEG, decoded by Pillow to upright RGB."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from loaders.packs.sources.item import BadImage

# Bitmaps only: formats that run an interpreter (EPS, WMF) have no place in a packer.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
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
# What Pillow's decoders raise on damaged data; warnings where they are turned into errors.
_PILLOW_ERRORS = (
    OSError,
    ArithmeticError,
    EOFError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
)


class DecodedImage(NamedTuple):
    """uint8 [H, W, 3] RGB as stored, the EXIF orientation to apply, and what the file was."""

    pixels: NDArray[np.uint8]
    orientation: int
    is_converted: bool
    num_frames: int


def decode_any(data: bytes, max_pixels: int) -> DecodedImage:
    """Decode any bitmap to RGB: first frame, transparent parts on white, 16 bit scaled to 8.

    Raises:
        BadImage: no image, a damaged one, or one of more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(f"{image.width}x{image.height} pixels, over the limit of {max_pixels} in all")
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            image.load()
            is_converted = image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L")
            pixels = _to_rgb(image)
    except Image.DecompressionBombError:
        raise BadImage(f"more pixels than the limit of {max_pixels} in all") from None
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except _PILLOW_ERRORS as error:
        kind = "truncated" if "truncated" in str(error) else "damaged image"
        raise BadImage(f"{kind}: {error}") from None
    return DecodedImage(pixels, orientation if orientation in _TRANSPOSE else 1, is_converted, frames)


@cache
def _known_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        top = 65_535.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else 255.0
        gray = np.clip(np.round(values * (255.0 / top)), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation (1 to 8) to uint8 [H, W, 3]."""
    turn = _TRANSPOSE.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
