"""Small JPEG files of a pack's images, for HTML pages."""

from __future__ import annotations

import numpy as np
import simplejpeg

from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg, factor_leaving
from loaders.packs.images.resize import fit_inside, resize_antialiased
from loaders.packs.pack import Pack

THUMBNAIL_PX = 144  # longest side; twice the height on sheets (4.5rem), for zooming
_UNREADABLE_GRAY = 128
_QUALITY = 80


def thumbnail(pack: Pack, row: int, side: int = THUMBNAIL_PX) -> bytes:
    """Return a JPEG file of a row's image, scaled down so that its longer side is at most `side` pixels.

    A JPEG that was damaged after packing becomes plain gray; verifying reports the damage.
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
