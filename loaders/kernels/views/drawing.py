"""Turn random numbers into the parameters of views: of the geometry and the operations of a policy.

`seed` is int64; `epochs` and `rows` are int64 [B]; `view` and `operation` are part of the counter of
`uniform4`. The last arguments are arrays of `ViewParameters`, which the functions write.
"""

from __future__ import annotations

import numpy as np

from loaders.kernels.cache import exact_inlined, exact_kernel
from loaders.kernels.random import uniform4
from loaders.kernels.views.codes import AFFINE, BRIGHTNESS, CUTOUT, MAX_ARGUMENTS, NOISE, POSTERIZE

_GEOMETRY = np.int64(0)  # `operation` in the counter of the geometry's random numbers
_FIRST, _SECOND = np.int64(0), np.int64(1)  # `block` in the counter
TILE_BLOCK = 16  # `block` of a tile in cell 0, then one per cell; the tries of a crop use 0 to 9


@exact_kernel
def draw_resized_crop(seed, epochs, rows, view, heights, widths, scale, log_ratio, box, window):
    """Draw boxes like torchvision's RandomResizedCrop: after ten failed tries, take a centred box."""
    for i in range(len(rows)):
        height, width = float(heights[i]), float(widths[i])
        found = False
        for attempt in range(10):
            u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, _GEOMETRY, attempt)
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
    """Write centred square boxes of `fraction` of the short side; draw shifts of up to `reach` pixels."""
    for i in range(len(rows)):
        side = fraction * min(heights[i], widths[i])
        box[i, 0], box[i, 1] = (heights[i] - side) / 2, (widths[i] - side) / 2
        box[i, 2], box[i, 3] = side, side
        window[i, 0], window[i, 1], window[i, 2], window[i, 3] = 0, 0, heights[i], widths[i]
        if reach > 0:
            u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, _GEOMETRY, _FIRST)
            shift[i, 0] = int(u0 * (2 * reach + 1)) - reach
            shift[i, 1] = int(u1 * (2 * reach + 1)) - reach


@exact_kernel
def draw_tile(seed, epochs, rows, view, cell_row, cell_column, grid, cell, side, box):
    """Reduce boxes to a tile of `side` x `side` pixels at a random place in one cell of a grid.

    The box has `grid` x `grid` cells, each of `cell` x `cell` pixels once resized; a tile begins at a whole
    one of these pixels. The window stays, so the taps of the filter may still reach over the whole crop.
    """
    number = cell_row * grid + cell_column
    for i in range(len(rows)):
        u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, _GEOMETRY, TILE_BLOCK + number)
        y_scale, x_scale = box[i, 2] / (grid * cell), box[i, 3] / (grid * cell)
        box[i, 0] += (cell_row * cell + int(u0 * (cell - side + 1))) * y_scale
        box[i, 1] += (cell_column * cell + int(u1 * (cell - side + 1))) * x_scale
        box[i, 2], box[i, 3] = side * y_scale, side * x_scale


@exact_kernel
def draw_flip(seed, epochs, rows, view, operation, p, flip):
    """Toggle each row's `flip` with probability p."""
    for i in range(len(rows)):
        u0, _, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        if u0 < p:
            flip[i] = not flip[i]


@exact_kernel
def draw_jitter(seed, epochs, rows, view, operation, p, low, high, slot, codes, args):
    """With probability p, write the four operations of colour jitter in random order, from `slot` on.

    Their arguments are uniform in [low, high], float64 [4] each; an operation with low = high is left out.
    """
    for i in range(len(rows)):
        u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        factors = uniform4(seed, epochs[i], rows[i], view, operation, _SECOND)
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
    """With probability p, write an operation with an argument uniform in [low, high] to `slot`."""
    for i in range(len(rows)):
        u0, u1, _, _ = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        if u0 < p:
            codes[i, slot] = code
            args[i, slot] = low + u1 * (high - low)


# Geometric operations of RandAugment, which become `AFFINE`; RandAugment's others have codes in `codes`.
ROTATE = 101
SHEAR_X = 102
SHEAR_Y = 103
TRANSLATE_X = 104
TRANSLATE_Y = 105


@exact_inlined
def _write_matrix(kind, value, resolution, fill, args):
    """Write the inverse map (view to source, relative to the centre) of one geometric operation."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if kind == ROTATE:
        angle = np.deg2rad(value)
        a, b, d, e = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    elif kind == SHEAR_X:  # shears keep the upper left corner fixed, like PIL's transform
        b, c = value, 0.5 * value * resolution
    elif kind == SHEAR_Y:
        d, f = value, 0.5 * value * resolution
    elif kind == TRANSLATE_X:
        c = np.trunc(value * resolution)
    else:
        f = np.trunc(value * resolution)
    args[0], args[1], args[2], args[3], args[4], args[5], args[6] = a, b, c, d, e, f, fill


@exact_kernel
def draw_affine(
    seed, epochs, rows, view, operation, p, degrees, translate, resolution, fill, slot, codes, args
):
    """With probability p, draw a warp: rotation about the centre, then translation."""
    for i in range(len(rows)):
        u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        if u0 >= p:
            continue
        codes[i, slot] = AFFINE
        _write_matrix(ROTATE, (2.0 * u1 - 1.0) * degrees, resolution, fill, args[i, slot:])
        # The inverse of "rotate, then shift": undo the shift first.
        shift_x, shift_y = (
            (2.0 * u2 - 1.0) * translate * resolution,
            (2.0 * u3 - 1.0) * translate * resolution,
        )
        a, b, d, e = args[i, slot], args[i, slot + 1], args[i, slot + 3], args[i, slot + 4]
        args[i, slot + 2] = -(a * shift_x + b * shift_y)
        args[i, slot + 5] = -(d * shift_x + e * shift_y)


@exact_kernel
def draw_randaugment(
    seed, epochs, rows, view, operation, p, num_ops, kinds, ranges, first_level, num_levels, resolution, fill,
    slot, codes, args,
):  # fmt: skip
    """Draw `num_ops` operations, each with probability p, into blocks of `MAX_ARGUMENTS` slots.

    Args:
        kinds: int64 [K], codes of the operations to draw from.
        ranges: float64 [K, 3], argument at magnitude 0, at magnitude 1, and whether its sign is random.
        first_level, num_levels: int, magnitudes are level / num_levels for first_level <= level < num_levels;
            `num_levels` 0 draws continuous magnitudes.
    """
    for i in range(len(rows)):
        for number in range(num_ops):
            u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, operation, number)
            if u0 >= p:
                continue
            which = int(u1 * len(kinds))
            magnitude = u2
            if num_levels > 0:
                magnitude = (first_level + int(u2 * (num_levels - first_level))) / num_levels
            value = ranges[which, 0] + magnitude * (ranges[which, 1] - ranges[which, 0])
            if ranges[which, 2] > 0 and u3 < 0.5:
                value = -value
            at, kind = slot + number * MAX_ARGUMENTS, kinds[which]
            if kind >= ROTATE:
                codes[i, at] = AFFINE
                _write_matrix(kind, value, resolution, fill, args[i, at:])
            else:
                codes[i, at] = kind
                args[i, at] = np.trunc(value) if kind == POSTERIZE else value


@exact_kernel
def draw_cutout(seed, epochs, rows, view, operation, p, low, high, resolution, fill, slot, codes, args):
    """With probability p, draw a square of `low` to `high` times the view's side, and clip it to the view."""
    for i in range(len(rows)):
        u0, u1, u2, u3 = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        if u0 >= p:
            continue
        side = int((low + u1 * (high - low)) * resolution)
        top = max(0, int(np.floor(u2 * resolution - 0.5 * side)))
        left = max(0, int(np.floor(u3 * resolution - 0.5 * side)))
        codes[i, slot] = CUTOUT
        args[i, slot], args[i, slot + 1] = top, left
        args[i, slot + 2] = min(resolution, int(np.floor(u2 * resolution - 0.5 * side)) + side)
        args[i, slot + 3] = min(resolution, int(np.floor(u3 * resolution - 0.5 * side)) + side)
        args[i, slot + 4 : slot + 7] = fill


@exact_kernel
def draw_erasing(
    seed, epochs, rows, view, operation, p, scale, log_ratio, resolution, noise, fill, slot, codes, args
):
    """With probability p, draw a rectangle like torchvision's RandomErasing: the first of 10 tries that fits.

    Args:
        noise: bool, draw a key for noise instead of writing `fill`.
        fill: float64 [3], on the scale of 255.
    """
    for i in range(len(rows)):
        u0, u1, u2, _ = uniform4(seed, epochs[i], rows[i], view, operation, _FIRST)
        if u0 >= p:
            continue
        for attempt in range(10):
            v0, v1, v2, v3 = uniform4(seed, epochs[i], rows[i], view, operation, _SECOND + attempt)
            area = resolution * resolution * (scale[0] + v0 * (scale[1] - scale[0]))
            ratio = np.exp(log_ratio[0] + v1 * (log_ratio[1] - log_ratio[0]))
            height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
            if height >= resolution or width >= resolution:
                continue
            top, left = np.floor(v2 * (resolution - height + 1)), np.floor(v3 * (resolution - width + 1))
            codes[i, slot] = NOISE if noise else CUTOUT
            args[i, slot], args[i, slot + 1] = top, left
            args[i, slot + 2], args[i, slot + 3] = top + height, left + width
            if noise:
                args[i, slot + 4], args[i, slot + 5] = np.floor(u1 * 2.0**24), np.floor(u2 * 2.0**24)
            else:
                args[i, slot + 4 : slot + 7] = fill
            break
