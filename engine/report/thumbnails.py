"""Small JPEG files of a pack's images, for pages."""

from __future__ import annotations

import base64

import numpy as np
import simplejpeg

from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg, factor_leaving
from loaders.packs import Pack
from loaders.packs.images.resize import fit_inside, resize_antialiased

THUMBNAIL_PX = 72
_UNREADABLE_GRAY = 128
_QUALITY = 80


def thumbnail(pack: Pack, row: int, side: int = THUMBNAIL_PX) -> bytes:
    """Return a JPEG file of the image of a row, whose longer side is at most `side` pixels.

    An image that was damaged since it was packed is a gray square; verifying names it.
    """
    data, columns = pack.view(row), pack.columns
    full = int(columns.height[row]), int(columns.width[row])
    height, width = fit_inside(*full, side)
    if columns.encoding[row] == ENCODING_RAW:
        pixels = data.reshape(*full, 3)
    else:
        try:
            pixels = decode_jpeg(data, factor_leaving(*full, height, width))
        except ValueError:
            pixels = np.full((height, width, 3), _UNREADABLE_GRAY, np.uint8)
    small = np.ascontiguousarray(resize_antialiased(pixels, height, width))
    encoded: bytes = simplejpeg.encode_jpeg(small, _QUALITY, "rgb", "420")
    return encoded


def jpeg_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a data URI, so that a page needs no second file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
