"""Convert a Pillow image of any mode to RGB with 8 bits per sample, with transparent parts on white.

The scale depends on the type of a file's samples, never on their values: unsigned integers are divided by
the largest value of their type, and floating-point samples must lie between 0 and 1. Samples whose range no
standard defines are refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from loaders.packs.reasons import BadImage, Reason

_BITS_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0
_LARGEST_16_BIT = 65_535
_SHORT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Image.Image, is_16_bit: bool) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3].

    Args:
        image: a loaded image.
        is_16_bit: whether the image is an RGB PNG with 16 bits per sample. Pillow keeps the upper 8 bits of
            its samples, but all 16 bits of its transparent colour.

    Raises:
        BadImage: the range of the samples is not stated, or floating-point samples lie outside 0 to 1.
        ValueError: Pillow does not convert this mode.
    """
    if image.mode in _SHORT_MODES or image.mode == "I":
        return _from_whole_numbers(image)
    if image.mode == "F":
        return _from_fractions(image)
    if image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb()) or image
    if is_16_bit and isinstance(key := image.info.get("transparency"), tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


@cache
def _lab_to_rgb() -> Any:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB")


def _from_whole_numbers(image: Image.Image) -> NDArray[np.uint8]:
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode == "I" and tags:
        raise BadImage(
            Reason.UNSUPPORTED,
            "a TIFF of 32-bit or signed integers, whose range is not stated: convert it to unsigned 8 or 16 "
            "bits",
        )
    largest = _LARGEST_16_BIT
    if tags:
        bits = tags.get(_BITS_TAG, (16,))
        largest = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    values = np.asarray(image).astype(np.int64)
    gray = _scaled(values / largest)
    if tags and tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        gray = 255 - gray
    if isinstance(key := image.info.get("transparency"), int):
        gray = np.where(values == key, np.uint8(255), gray)
    return _gray_to_rgb(gray)


def _from_fractions(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image, np.float64)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not 0 <= low <= high <= 1:  # false for NaN too
        raise BadImage(
            Reason.UNSUPPORTED,
            f"floating-point samples from {low:.6g} to {high:.6g}, expected 0 to 1: convert them to that "
            "range or to 8 bits",
        )
    return _gray_to_rgb(_scaled(values))


def _scaled(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale values from [0, 1] to [0, 255], rounding half up."""
    return np.clip(np.floor(values * 255 + 0.5), 0, 255).astype(np.uint8)


def _gray_to_rgb(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(gray[:, :, None], 3, axis=2)
