"""Random numbers to parameters, one row after another, for every operation of a policy.

`seed` int64; `epochs` and `rows` int64 [B]; `view` and `operation` are numbers of the random address; the
last arguments are the arrays of `ViewParameters` that are written.
"""

from __future__ import annotations

import numpy as np

from loaders.views.codes import BRIGHTNESS
from loaders.views.kernels.compile import exact_kernel
from loaders.views.kernels.random import uniform4


@exact_kernel
def draw_resized_crop(seed, epochs, rows, view, heights, widths, scale, log_ratio, box, window):
    """Draw boxes as torchvision's RandomResizedCrop: ten tries, then the largest centred box that fits."""
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


@exact_kernel
def draw_centered(seed, epochs, rows, view, heights, widths, fraction, reach, box, window, shift):
    """Centre a square box of `fraction` of the short side; shift the view by up to `reach` pixels."""
    for i in range(len(rows)):
        side = fraction * min(heights[i], widths[i])
        box[i, 0], box[i, 1] = (heights[i] - side) / 2, (widths[i] - side) / 2
        box[i, 2], box[i, 3] = side, side
        window[i, 0], window[i, 1], window[i, 2], window[i, 3] = 0, 0, heights[i], widths[i]
        if reach > 0:
            u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, 0, 0)
            shift[i, 0] = int(u0 * (2 * reach + 1)) - reach
            shift[i, 1] = int(u1 * (2 * reach + 1)) - reach


@exact_kernel
def draw_flip(seed, epochs, rows, view, operation, p, flip):
    """Toggle `flip` with probability p."""
    for i in range(len(rows)):
        u0, _, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, 0)
        if u0 < p:
            flip[i] = not flip[i]


@exact_kernel
def draw_jitter(seed, epochs, rows, view, operation, p, low, high, slot, codes, args):
    """Draw four factors in a random order into slots slot .. slot + 3."""
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


@exact_kernel
def draw_one(seed, epochs, rows, view, operation, p, code, low, high, slot, codes, args):
    """Draw one operation with one uniform argument into `slot`."""
    for i in range(len(rows)):
        u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, 0)
        if u0 < p:
            codes[i, slot] = code
            args[i, slot] = low + u1 * (high - low)
