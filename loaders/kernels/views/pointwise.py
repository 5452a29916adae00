"""Colour operations on a tile of planar float32 pixels in [0, 255]; each is one pass in cache.

The slices r, g, b (float32, of equal length) and `channel` are changed in place. The arithmetic is
torchvision's (v2 functional, float images), clamping included; but posterising and equalising, as in PIL,
work on whole levels, and `STANDARDIZE` is this project's.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import inlined
from loaders.kernels.views.codes import (
    AUTOCONTRAST,
    BRIGHTNESS,
    CONTRAST,
    EQUALIZE,
    GRAYSCALE,
    HALF,
    HUE,
    INVERT,
    POSTERIZE,
    ROUNDING,
    SATURATION,
    SOLARIZE,
    STANDARDIZE,
)

_RED = np.float32(0.2989)
_GREEN = np.float32(0.587)
_BLUE = np.float32(0.114)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_FULL = np.float32(255.0)
_HALF = np.float32(HALF)
_SIXTH = np.float32(1.0 / 6.0)


@inlined
def _brightness(r, g, b, factor):
    for i in range(len(r)):
        r[i] = min(r[i] * factor, _FULL)
        g[i] = min(g[i] * factor, _FULL)
        b[i] = min(b[i] * factor, _FULL)


@inlined
def _contrast(r, g, b, factor, mean):
    offset = (_ONE - factor) * mean
    for i in range(len(r)):
        r[i] = max(_ZERO, min(r[i] * factor + offset, _FULL))
        g[i] = max(_ZERO, min(g[i] * factor + offset, _FULL))
        b[i] = max(_ZERO, min(b[i] * factor + offset, _FULL))


@inlined
def _saturation(r, g, b, factor):
    rest = _ONE - factor
    for i in range(len(r)):
        gray = (_RED * r[i] + _GREEN * g[i] + _BLUE * b[i]) * rest
        r[i] = max(_ZERO, min(r[i] * factor + gray, _FULL))
        g[i] = max(_ZERO, min(g[i] * factor + gray, _FULL))
        b[i] = max(_ZERO, min(b[i] * factor + gray, _FULL))


@inlined
def _hue_channel(position, value, chroma):
    """Return a channel of an HSV colour; `position` is n + hue in sextants, n = 5, 3, 1 for r, g, b."""
    k = position - np.float32(6.0) * np.floor(position * _SIXTH)
    return value - chroma * max(_ZERO, min(min(k, np.float32(4.0) - k), _ONE))


@inlined
def _hue(r, g, b, turn):
    shift = np.float32(6.0) * turn
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        value = max(red, max(green, blue))
        chroma = value - min(red, min(green, blue))
        inverse = _ONE / max(chroma, np.float32(1e-6))
        from_red = (green - blue) * inverse
        from_green = (blue - red) * inverse + np.float32(2.0)
        from_blue = (red - green) * inverse + np.float32(4.0)
        sextant = from_red if value == red else (from_green if value == green else from_blue)
        hue = sextant + shift
        r[i] = _hue_channel(hue + np.float32(5.0), value, chroma)
        g[i] = _hue_channel(hue + np.float32(3.0), value, chroma)
        b[i] = _hue_channel(hue + np.float32(1.0), value, chroma)


@inlined
def _grayscale(r, g, b):
    for i in range(len(r)):
        gray = _RED * r[i] + _GREEN * g[i] + _BLUE * b[i]
        r[i] = gray
        g[i] = gray
        b[i] = gray


@inlined
def _solarize(r, g, b, threshold):
    for i in range(len(r)):
        r[i] = _FULL - r[i] if r[i] >= threshold else r[i]
        g[i] = _FULL - g[i] if g[i] >= threshold else g[i]
        b[i] = _FULL - b[i] if b[i] >= threshold else b[i]


@inlined
def _invert(r, g, b):
    for i in range(len(r)):
        r[i] = _FULL - r[i]
        g[i] = _FULL - g[i]
        b[i] = _FULL - b[i]


@inlined
def _posterize(r, g, b, bits):
    step = np.float32(2.0 ** (8.0 - bits))
    inverse = _ONE / step
    for i in range(len(r)):
        r[i] = np.floor(np.floor(r[i] + _HALF) * inverse) * step
        g[i] = np.floor(np.floor(g[i] + _HALF) * inverse) * step
        b[i] = np.floor(np.floor(b[i] + _HALF) * inverse) * step


@inlined
def _stretch(channel, low, high):
    """Map [low, high] to [0, 255]; leave a constant channel as it is."""
    varies = high > low + np.float32(ROUNDING)
    scale = _FULL / (high - low) if varies else _ONE
    origin = low if varies else _ZERO
    for i in range(len(channel)):
        channel[i] = max(_ZERO, min((channel[i] - origin) * scale, _FULL))


@inlined
def _standardize(channel, mean, deviation):
    inverse = _ONE / deviation
    for i in range(len(channel)):
        channel[i] = (channel[i] - mean) * inverse


@inlined
def _look_up(channel, table):
    for i in range(len(channel)):
        channel[i] = table[int(channel[i] + _HALF)]


@inlined
def apply_pointwise(code, argument, stats, r, g, b):
    """Apply one colour operation to a tile; `stats` are the `Stats` of the whole view."""
    if code == BRIGHTNESS:
        _brightness(r, g, b, argument)
    elif code == CONTRAST:
        _contrast(r, g, b, argument, stats.mean[0])
    elif code == SATURATION:
        _saturation(r, g, b, argument)
    elif code == HUE:
        _hue(r, g, b, argument)
    elif code == GRAYSCALE:
        _grayscale(r, g, b)
    elif code == SOLARIZE:
        _solarize(r, g, b, argument - np.float32(ROUNDING))
    elif code == POSTERIZE:
        _posterize(r, g, b, argument)
    elif code == INVERT:
        _invert(r, g, b)
    elif code == AUTOCONTRAST:
        _stretch(r, stats.low[0], stats.high[0])
        _stretch(g, stats.low[1], stats.high[1])
        _stretch(b, stats.low[2], stats.high[2])
    elif code == EQUALIZE:
        _look_up(r, stats.table[0])
        _look_up(g, stats.table[1])
        _look_up(b, stats.table[2])
    elif code == STANDARDIZE:
        _standardize(r, stats.center[0], stats.spread[0] + argument)
        _standardize(g, stats.center[1], stats.spread[1] + argument)
        _standardize(b, stats.center[2], stats.spread[2] + argument)
