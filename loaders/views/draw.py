"""From a policy to numbers: the random parameters of a batch of views, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from loaders.views.policy import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    PaddedCrop,
    RandomResizedCrop,
    Solarize,
    ViewPolicy,
)
from loaders.views.random import uniform4

# Codes of the pixel operations; the meaning of their arguments stands beside each.
NONE = 0
BRIGHTNESS = 1  # factor
CONTRAST = 2  # factor
SATURATION = 3  # factor
HUE = 4  # turn of the circle, in [-0.5, 0.5]
GRAYSCALE = 5
BLUR = 6  # standard deviation in pixels
SOLARIZE = 7  # threshold of 255

_GEOMETRY = 0  # operation number of the geometry; operations count from 1


@dataclass(frozen=True)
class ViewParameters:
    """Everything random about one view of B images.

    Attributes:
        box: float64 [B, 4], top, left, height, width of the source box in pixels.
        window: int32 [B, 4], top, left, bottom, right that resize taps may touch.
        shift: int32 [B, 2], rows and columns by which the resized view is moved, borders reflecting.
        flip: bool [B], mirror left to right.
        codes: int32 [B, P], operation codes in the order of application; 0 does nothing.
        args: float32 [B, P], argument of each operation.
    """

    box: NDArray[np.float64]
    window: NDArray[np.int32]
    shift: NDArray[np.int32]
    flip: NDArray[np.bool_]
    codes: NDArray[np.int32]
    args: NDArray[np.float32]


@njit(cache=True, nogil=True)
def _draw_resized_crop(seed, epochs, rows, view, heights, widths, scale, log_ratio, box, window):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        height, width = float(heights[i]), float(widths[i])
        found = False
        for attempt in range(10):
            u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, 0, attempt)
            area = height * width * (scale[0] + u0 * (scale[1] - scale[0]))
            ratio = np.exp(log_ratio[0] + u1 * (log_ratio[1] - log_ratio[0]))
            w = np.rint(np.sqrt(area * ratio))
            h = np.rint(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                box[i, 0] = np.floor(u2 * (height - h + 1))
                box[i, 1] = np.floor(u3 * (width - w + 1))
                found = True
                break
        if not found:  # the largest centred box whose aspect ratio is allowed
            low, high = np.exp(log_ratio[0]), np.exp(log_ratio[1])
            w, h = width, height
            if width < height * low:
                h = max(1.0, np.rint(width / low))
            elif width > height * high:
                w = max(1.0, np.rint(height * high))
            box[i, 0] = np.floor((height - h) / 2)
            box[i, 1] = np.floor((width - w) / 2)
        box[i, 2], box[i, 3] = h, w
        window[i, 0], window[i, 1] = int(box[i, 0]), int(box[i, 1])
        window[i, 2], window[i, 3] = int(box[i, 0] + h), int(box[i, 1] + w)


@njit(cache=True, nogil=True)
def _draw_centered(seed, epochs, rows, view, heights, widths, fraction, reach, box, window, shift):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        side = fraction * min(heights[i], widths[i])
        box[i, 0], box[i, 1] = (heights[i] - side) / 2, (widths[i] - side) / 2
        box[i, 2], box[i, 3] = side, side
        window[i, 0], window[i, 1], window[i, 2], window[i, 3] = 0, 0, heights[i], widths[i]
        if reach > 0:
            u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, 0, 0)
            shift[i, 0] = int(u0 * (2 * reach + 1)) - reach
            shift[i, 1] = int(u1 * (2 * reach + 1)) - reach


@njit(cache=True, nogil=True)
def _draw_flip(seed, epochs, rows, view, operation, p, flip):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        u0, _, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, 0)
        if u0 < p:
            flip[i] = not flip[i]


@njit(cache=True, nogil=True)
def _draw_jitter(seed, epochs, rows, view, operation, p, low, high, slot, codes, args):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, operation, 0)
        factors = uniform4(seed, epochs[i], rows[i], view, operation, 1)
        if u0 >= p:
            continue
        order = np.empty(4, np.int32)
        for k in range(4):
            order[k] = k
        for k, u in ((3, u1), (2, u2), (1, u3)):  # Fisher-Yates
            j = int(u * (k + 1))
            order[k], order[j] = order[j], order[k]
        for k in range(4):
            which = order[k]
            if low[which] < high[which]:
                codes[i, slot + k] = BRIGHTNESS + which
                args[i, slot + k] = low[which] + factors[which] * (high[which] - low[which])


@njit(cache=True, nogil=True)
def _draw_one(seed, epochs, rows, view, operation, p, code, low, high, slot, codes, args):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, 0)
        if u0 < p:
            codes[i, slot] = code
            args[i, slot] = low + u1 * (high - low)


def num_slots(operation: Operation) -> int:
    """Entries that an operation takes in `codes` and `args`."""
    if isinstance(operation, HorizontalFlip):
        return 0
    return 4 if isinstance(operation, ColorJitter) else 1


def draw(
    policy: ViewPolicy,
    seed: int,
    epochs: NDArray[np.int64],
    rows: NDArray[np.int64],
    view: int,
    heights: NDArray[np.uint32],
    widths: NDArray[np.uint32],
) -> ViewParameters:
    """Draw the parameters of view number `view` of the images at `rows`.

    Args:
        policy: what to draw from.
        seed: any int64.
        epochs: int64 [B], in [0, 2^32); one per row, since a cycling stream may cross into its next epoch.
        rows: int64 [B], rows of the pack; in [0, 2^48).
        view: number of the view among its loader's, in [0, 2^16).
        heights: uint32 [B], height of each image in pixels.
        widths: uint32 [B].

    Returns:
        Parameters that depend on nothing but the arguments; one row does not depend on the others.
    """
    batch = len(rows)
    slots = sum(num_slots(operation) for operation in policy.operations)
    parameters = ViewParameters(
        box=np.empty((batch, 4), np.float64),
        window=np.empty((batch, 4), np.int32),
        shift=np.zeros((batch, 2), np.int32),
        flip=np.zeros(batch, np.bool_),
        codes=np.zeros((batch, slots), np.int32),
        args=np.zeros((batch, slots), np.float32),
    )
    at = (np.int64(seed), epochs, rows, np.int64(view))
    _draw_geometry(policy, at, heights.astype(np.int64), widths.astype(np.int64), parameters)
    slot = 0
    for number, operation in enumerate(policy.operations, start=_GEOMETRY + 1):
        _draw_operation(operation, at, number, slot, parameters)
        slot += num_slots(operation)
    return parameters


_At = tuple[np.int64, NDArray[np.int64], NDArray[np.int64], np.int64]


def _draw_geometry(
    policy: ViewPolicy, at: _At, heights: NDArray[np.int64], widths: NDArray[np.int64], out: ViewParameters
) -> None:
    match policy.geometry:
        case RandomResizedCrop(scale=scale, ratio=ratio):
            log_ratio = (float(np.log(ratio[0])), float(np.log(ratio[1])))
            scale = (float(scale[0]), float(scale[1]))
            _draw_resized_crop(*at, heights, widths, scale, log_ratio, out.box, out.window)
        case CenterCrop(fraction=fraction):
            _draw_centered(*at, heights, widths, float(fraction), 0, out.box, out.window, out.shift)
        case PaddedCrop(padding=padding):
            reach = round(padding * policy.resolution)
            _draw_centered(*at, heights, widths, 1.0, reach, out.box, out.window, out.shift)


def _draw_operation(operation: Operation, at: _At, number: int, slot: int, out: ViewParameters) -> None:
    match operation:
        case HorizontalFlip(p=p):
            _draw_flip(*at, number, float(p), out.flip)
        case ColorJitter(p=p):
            strengths = (operation.brightness, operation.contrast, operation.saturation)
            low = np.array([max(0.0, 1 - s) for s in strengths] + [-operation.hue])
            high = np.array([1.0 + s for s in strengths] + [operation.hue])
            _draw_jitter(*at, number, float(p), low, high, slot, out.codes, out.args)
        case Grayscale(p=p):
            _draw_one(*at, number, float(p), GRAYSCALE, 0.0, 0.0, slot, out.codes, out.args)
        case GaussianBlur(p=p, sigma=sigma):
            low, high = float(sigma[0]), float(sigma[1])
            _draw_one(*at, number, float(p), BLUR, low, high, slot, out.codes, out.args)
        case Solarize(p=p, threshold=threshold):
            low = float(threshold)
            _draw_one(*at, number, float(p), SOLARIZE, low, low, slot, out.codes, out.args)
