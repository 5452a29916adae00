"""Draw views on a device: two launches resample, and one or two run for each operation on a whole view.

This is the counterpart of `loaders.kernels.views`, with the same arithmetic but without `NOISE`. `across`
resamples the image horizontally. `down` resamples the result vertically and applies the pointwise operations
that follow. Each launch of `advance` begins with an operation that computes a pixel from other pixels too,
and stops before the next such operation; a blur takes two launches. The host plans where each launch begins
and ends: `launch.plan`.

A program processes a block of one view's pixels. Statistics are summed within each block, and the sums of the
blocks are added in a fixed order, so a view does not depend on which program ends first.

Arguments of several kernels, for B views of R x R pixels with P slots of operations:
    codes int32 [B, P], args float32 [B, P]: see `loaders.kernels.views.codes`.
    stage int32 [B, 2]: slot of the operation to begin with, and slot to stop before, P at the end. The two
        are equal for the first half of a blur; both are -1 for a view that is already finished.
    partial float32 [B, blocks, 6], counts int32 [B, blocks, 3, 256]: statistics of each block.
    view float32 [B, 3, R, R]: values in [0, 255] between launches.
    out: the finished views; pixels are `pixel_step` elements apart, channels `channel_step`.
    gain, bias float32 [3]: out = value * gain + bias.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from loaders.kernels.device.filters import clamp_byte, means, rounded_means, taps_of
from loaders.kernels.views import codes as numbers

BRIGHTNESS: tl.constexpr = tl.constexpr(numbers.BRIGHTNESS)
CONTRAST: tl.constexpr = tl.constexpr(numbers.CONTRAST)
SATURATION: tl.constexpr = tl.constexpr(numbers.SATURATION)
HUE: tl.constexpr = tl.constexpr(numbers.HUE)
GRAYSCALE: tl.constexpr = tl.constexpr(numbers.GRAYSCALE)
BLUR: tl.constexpr = tl.constexpr(numbers.BLUR)
SOLARIZE: tl.constexpr = tl.constexpr(numbers.SOLARIZE)
POSTERIZE: tl.constexpr = tl.constexpr(numbers.POSTERIZE)
INVERT: tl.constexpr = tl.constexpr(numbers.INVERT)
AUTOCONTRAST: tl.constexpr = tl.constexpr(numbers.AUTOCONTRAST)
EQUALIZE: tl.constexpr = tl.constexpr(numbers.EQUALIZE)
SHARPNESS: tl.constexpr = tl.constexpr(numbers.SHARPNESS)
AFFINE: tl.constexpr = tl.constexpr(numbers.AFFINE)
CUTOUT: tl.constexpr = tl.constexpr(numbers.CUTOUT)
STANDARDIZE: tl.constexpr = tl.constexpr(numbers.STANDARDIZE)

PARTS: tl.constexpr = tl.constexpr(6)  # statistics per block
HALF: tl.constexpr = tl.constexpr(numbers.HALF)
ROUNDING: tl.constexpr = tl.constexpr(numbers.ROUNDING)

_jit: Any = triton.jit  # untyped, like numba's decorators
_kernel: Any = triton.jit(do_not_specialize=("P", "R", "pixel_step", "channel_step"))


@_kernel
def across(
    address, sizes, box, window, shift, flip, rows, place, half, R,
    INTERLEAVED: tl.constexpr, CUBIC: tl.constexpr, ROUNDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resample horizontally the rows of each image that its view needs.

    Args:
        address: int64 [B], where each image begins: uint8 planes [3, H, W], or [H, W, 3] if INTERLEAVED.
        sizes: int32 [B, 2], H and W.
        box, window, shift, flip: see `loaders.views.draw.ViewParameters`; flip is int32.
        rows: int32 [B, 2], first row of the image that is needed, and the number of rows.
        place: int64 [B], where each view begins in `half`.
        half: float32, out: [3, rows, R] of each view.
    """
    v = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(rows + 2 * v + 1) * R
    if tl.program_id(1) * BLOCK < count:
        m = i < count
        height, width = tl.load(sizes + 2 * v), tl.load(sizes + 2 * v + 1)
        pixels = tl.load(address + v).to(tl.pointer_type(tl.uint8))
        begin, taps, near, inverse = taps_of(
            i % R, tl.load(box + 4 * v + 1), tl.load(box + 4 * v + 3), tl.load(window + 4 * v + 1),
            tl.load(window + 4 * v + 3), tl.load(shift + 2 * v + 1), tl.load(flip + v), R, CUBIC,
        )  # fmt: skip
        step, plane = (3, 1) if INTERLEAVED else (1, height * width)
        at = pixels + ((tl.load(rows + 2 * v) + i // R) * width + begin).to(tl.int64) * step
        if ROUNDED:
            r, g, b = rounded_means(at, step, plane, taps, near, inverse, m, CUBIC)
        else:
            r, g, b = means(at, step, plane, taps, near.to(tl.float32), inverse.to(tl.float32), m, CUBIC)
        to = half + tl.load(place + v) + i
        tl.store(to, r, mask=m)
        tl.store(to + count, g, mask=m)
        tl.store(to + 2 * count, b, mask=m)


@_kernel
def down(
    half, place, rows, box, window, shift, codes, args, P, stage, view, partial, counts, out, gain, bias,
    R, pixel_step, channel_step, CUBIC: tl.constexpr, ROUNDED: tl.constexpr, EQUALIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Resample `half` vertically and apply the first operations; arguments as in `across` and the module."""
    v = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = i < R * R
    y, x = i // R, i % R
    begin, taps, near, inverse = taps_of(
        y, tl.load(box + 4 * v), tl.load(box + 4 * v + 2), tl.load(window + 4 * v),
        tl.load(window + 4 * v + 2), tl.load(shift + 2 * v), 0, R, CUBIC,
    )  # fmt: skip
    plane = tl.load(rows + 2 * v + 1) * R
    at = half + tl.load(place + v) + (begin - tl.load(rows + 2 * v)) * R + x
    if ROUNDED:
        r, g, b = rounded_means(at, R, plane, taps, near, inverse, m, CUBIC)
    else:
        r, g, b = means(at, R, plane, taps, near.to(tl.float32), inverse.to(tl.float32), m, CUBIC)
        r, g, b = clamp_byte(r), clamp_byte(g), clamp_byte(b)
    _go_on(
        v, i, m, y, x, r, g, b, codes, args, P, 0, tl.load(stage + 2 * v + 1), view, partial, counts, out,
        gain, bias, R, pixel_step, channel_step, EQUALIZES, BLOCK,
    )  # fmt: skip


@_jit
def _luma(r, g, b):
    return 0.2989 * r + 0.587 * g + 0.114 * b


@_jit
def _hue_channel(position, value, chroma):
    k = position - 6.0 * tl.floor(position * (1.0 / 6.0))
    return value - chroma * tl.maximum(0.0, tl.minimum(tl.minimum(k, 4.0 - k), 1.0))


@_jit
def _posterize(value, bits):
    step = (1 << (8 - bits.to(tl.int32))).to(tl.float32)
    return tl.floor(tl.floor(value + HALF) * (1.0 / step)) * step


@_jit
def _pointwise(code, args, y, x, r, g, b):
    """Apply one operation; `args` points to its arguments."""
    a = tl.load(args)
    if code == BRIGHTNESS:
        r, g, b = tl.minimum(r * a, 255.0), tl.minimum(g * a, 255.0), tl.minimum(b * a, 255.0)
    elif code == SATURATION:
        gray = _luma(r, g, b) * (1.0 - a)
        r, g, b = clamp_byte(r * a + gray), clamp_byte(g * a + gray), clamp_byte(b * a + gray)
    elif code == HUE:
        value = tl.maximum(r, tl.maximum(g, b))
        chroma = value - tl.minimum(r, tl.minimum(g, b))
        inverse = 1.0 / tl.maximum(chroma, 1e-6)
        from_green, from_blue = (b - r) * inverse + 2.0, (r - g) * inverse + 4.0
        hue = tl.where(value == r, (g - b) * inverse, tl.where(value == g, from_green, from_blue)) + 6.0 * a
        r, g, b = (
            _hue_channel(hue + 5.0, value, chroma),
            _hue_channel(hue + 3.0, value, chroma),
            _hue_channel(hue + 1.0, value, chroma),
        )
    elif code == GRAYSCALE:
        gray = _luma(r, g, b)
        r, g, b = gray, gray, gray
    elif code == SOLARIZE:
        least = a - ROUNDING
        r = tl.where(r >= least, 255.0 - r, r)
        g = tl.where(g >= least, 255.0 - g, g)
        b = tl.where(b >= least, 255.0 - b, b)
    elif code == POSTERIZE:
        r, g, b = _posterize(r, a), _posterize(g, a), _posterize(b, a)
    elif code == INVERT:
        r, g, b = 255.0 - r, 255.0 - g, 255.0 - b
    elif code == CUTOUT:
        inside = (y >= a) & (x >= tl.load(args + 1)) & (y < tl.load(args + 2)) & (x < tl.load(args + 3))
        r = tl.where(inside, tl.load(args + 4), r)
        g = tl.where(inside, tl.load(args + 5), g)
        b = tl.where(inside, tl.load(args + 6), b)
    return r, g, b


@_jit
def _go_on(
    v, i, m, y, x, r, g, b, codes, args, P, begin, end, view, partial, counts, out, gain, bias,
    R, pixel_step, channel_step, EQUALIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply slots begin .. end - 1; write finished pixels, or unfinished ones and slot `end`'s statistics."""
    for k in range(begin, end):
        r, g, b = _pointwise(tl.load(codes + v * P + k), args + v * P + k, y, x, r, g, b)
    first = v.to(tl.int64) * 3 * R * R
    if end == P:
        final = out + first + i * pixel_step
        kind = out.dtype.element_ty
        tl.store(final, (r * tl.load(gain) + tl.load(bias)).to(kind), mask=m)
        tl.store(final + channel_step, (g * tl.load(gain + 1) + tl.load(bias + 1)).to(kind), mask=m)
        tl.store(final + 2 * channel_step, (b * tl.load(gain + 2) + tl.load(bias + 2)).to(kind), mask=m)
    else:
        kept = view + first + i
        tl.store(kept, r, mask=m)
        tl.store(kept + R * R, g, mask=m)
        tl.store(kept + 2 * R * R, b, mask=m)
        number = v * tl.num_programs(1) + tl.program_id(1)
        code = tl.load(codes + v * P + end)
        part = partial + number * PARTS
        if code == CONTRAST:
            tl.store(part, tl.sum(tl.where(m, _luma(r, g, b), 0.0)))
        elif code == AUTOCONTRAST:
            _store_extremes(part, r, m)
            _store_extremes(part + 2, g, m)
            _store_extremes(part + 4, b, m)
        elif code == STANDARDIZE:
            _store_moments(part, r, m)
            _store_moments(part + 2, g, m)
            _store_moments(part + 4, b, m)
        if EQUALIZES:  # noqa: SIM102 - known while compiling, unlike the code
            if code == EQUALIZE:
                count = counts + number * 768 + tl.arange(0, 256)
                tl.store(count, tl.histogram((r + HALF).to(tl.int32), 256, mask=m))
                tl.store(count + 256, tl.histogram((g + HALF).to(tl.int32), 256, mask=m))
                tl.store(count + 512, tl.histogram((b + HALF).to(tl.int32), 256, mask=m))


@_jit
def _store_extremes(part, channel, m):
    tl.store(part, tl.min(tl.where(m, channel, 255.0)))
    tl.store(part + 1, tl.max(tl.where(m, channel, 0.0)))


@_jit
def _store_moments(part, channel, m):
    mean = tl.sum(tl.where(m, channel, 0.0)) / tl.sum(m.to(tl.float32))
    further = tl.where(m, channel - mean, 0.0)
    tl.store(part, mean)
    tl.store(part + 1, tl.sum(further * further))


@_jit
def _three(at, plane, m):
    """Load three channels that lie `plane` elements apart, given pointers to the first."""
    return (
        tl.load(at, mask=m, other=0.0),
        tl.load(at + plane, mask=m, other=0.0),
        tl.load(at + 2 * plane, mask=m, other=0.0),
    )


@_jit
def _mirror(j, R):
    j = tl.abs(j)
    return tl.where(j >= R, 2 * (R - 1) - j, j)


@_jit
def _blur(source, place, step, i, m, sigma, R):
    """Blur along an axis: `place` is the pixel's index on it, `step` the elements from pixel to pixel."""
    radius = tl.minimum(tl.ceil(3.0 * sigma.to(tl.float64)).to(tl.int32), R - 1)
    plane = R * R
    r, g, b = _three(source + i, plane, m)
    total = 1.0
    for t in range(1, radius + 1):
        weight = tl.exp(-0.5 * (t / sigma) * (t / sigma))
        total += 2.0 * weight
        r0, g0, b0 = _three(source + i + (_mirror(place - t, R) - place) * step, plane, m)
        r1, g1, b1 = _three(source + i + (_mirror(place + t, R) - place) * step, plane, m)
        r += weight * (r0 + r1)
        g += weight * (g0 + g1)
        b += weight * (b0 + b1)
    return r / total, g / total, b / total


@_jit
def _nearest(value):
    """Round, ties to even."""
    up = tl.floor(value + 0.5)
    odd = up - 2.0 * tl.floor(up * 0.5)
    return tl.where((up - value == 0.5) & (odd == 1.0), up - 1.0, up)


@_jit
def _warp(source, args, y, x, m, R):
    half = 0.5 * (R - 1)
    v, u = y - half, x - half
    row = _nearest(tl.load(args + 3) * u + tl.load(args + 4) * v + tl.load(args + 5) + half)
    column = _nearest(tl.load(args) * u + tl.load(args + 1) * v + tl.load(args + 2) + half)
    inside = (row >= 0) & (row < R) & (column >= 0) & (column < R)
    place = tl.where(inside, row.to(tl.int32) * R + column.to(tl.int32), 0)
    r, g, b = _three(source + place, R * R, m & inside)
    fill = tl.load(args + 6)
    return tl.where(inside, r, fill), tl.where(inside, g, fill), tl.where(inside, b, fill)


@_jit
def _sharpen(source, i, y, x, m, factor, R):
    inner = m & (y > 0) & (y < R - 1) & (x > 0) & (x < R - 1)
    r, g, b = _three(source + i, R * R, m)
    r_sum, g_sum, b_sum = 4.0 * r, 4.0 * g, 4.0 * b  # the loop adds the centre once more: weight 5 of 13
    for k in range(9):
        r0, g0, b0 = _three(source + i + (k // 3 - 1) * R + k % 3 - 1, R * R, inner)
        r_sum += r0
        g_sum += g0
        b_sum += b0
    rest = (1.0 - factor) / 13.0
    return (
        tl.where(inner, clamp_byte(r * factor + r_sum * rest), r),
        tl.where(inner, clamp_byte(g * factor + g_sum * rest), g),
        tl.where(inner, clamp_byte(b * factor + b_sum * rest), b),
    )


@_jit
def _stretch(part, blocks, channel):
    """Map the range of a channel's values to [0, 255]; leave a constant channel as it is."""
    low, high = 255.0, 0.0
    for k in range(blocks):
        low = tl.minimum(low, tl.load(part + k * PARTS))
        high = tl.maximum(high, tl.load(part + k * PARTS + 1))
    varies = high > low + ROUNDING
    scale = tl.where(varies, 255.0 / tl.where(varies, high - low, 1.0), 1.0)
    return clamp_byte((channel - tl.where(varies, low, 0.0)) * scale)


@_jit
def _standardize(part, blocks, channel, size, eps, BLOCK: tl.constexpr):
    """Standardise a channel; combine the blocks by the formula of Chan, Golub and LeVeque 1983."""
    mean, squares = _nothing(), _nothing()
    for k in range(blocks):
        mean += tl.load(part + k * PARTS).to(tl.float64) * tl.minimum(BLOCK, size - k * BLOCK) / size
    for k in range(blocks):
        further = tl.load(part + k * PARTS).to(tl.float64) - mean
        squares += tl.load(part + k * PARTS + 1) + further * further * tl.minimum(BLOCK, size - k * BLOCK)
    return (channel - mean.to(tl.float32)) / (tl.sqrt(squares / size).to(tl.float32) + eps)


@_jit
def _nothing():
    return tl.zeros([], tl.float64)


@_jit
def _equalize(count, blocks, channel):
    """Equalise a channel as PIL does: the step leaves out the pixels of the highest value."""
    value = tl.arange(0, 256)
    found = tl.zeros([256], tl.int32)
    for k in range(blocks):
        found += tl.load(count + k * 768 + value)
    last = tl.max(tl.where(found > 0, value, 0))
    step = (tl.sum(found) - tl.sum(tl.where(value == last, found, 0))) // 255
    below = step // 2 + tl.cumsum(found) - found
    table = tl.where(step == 0, value, tl.minimum(255, below // tl.maximum(step, 1)))
    return tl.gather(table, (channel + HALF).to(tl.int32), 0).to(tl.float32)


@_kernel
def advance(
    source, known, found, codes, args, P, stage, view, partial, counts, out, gain, bias,
    R, pixel_step, channel_step, EQUALIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply the operation at which a view has stopped, and all that follow up to the next stop.

    Args:
        source: float32 [B, 3, R, R], the views as the last launch left them.
        known: float32 [B, blocks, 6], `partial` of the last launch.
        found: int32 [B, blocks, 3, 256], `counts` of the last launch.
        The others: see the module.
    """
    v = tl.program_id(0)
    at, end = tl.load(stage + 2 * v), tl.load(stage + 2 * v + 1)
    if at >= 0:
        blocks, size = tl.num_programs(1), R * R
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        m = i < size
        y, x = i // R, i % R
        here = source + v.to(tl.int64) * 3 * size
        part = known + v * blocks * PARTS
        mine = args + v * P + at
        argument = tl.load(mine)
        code = tl.load(codes + v * P + at)
        r, g, b = _three(here + i, size, m)
        if code == BLUR:
            r, g, b = _blur(here, tl.where(at == end, x, y), tl.where(at == end, 1, R), i, m, argument, R)
        elif code == AFFINE:
            r, g, b = _warp(here, mine, y, x, m, R)
        elif code == SHARPNESS:
            r, g, b = _sharpen(here, i, y, x, m, argument, R)
        elif code == CONTRAST:
            mean = 0.0
            for k in range(blocks):
                mean += tl.load(part + k * PARTS)
            offset = (1.0 - argument) * (mean / size)
            r, g = clamp_byte(r * argument + offset), clamp_byte(g * argument + offset)
            b = clamp_byte(b * argument + offset)
        elif code == AUTOCONTRAST:
            r, g, b = _stretch(part, blocks, r), _stretch(part + 2, blocks, g), _stretch(part + 4, blocks, b)
        elif code == STANDARDIZE:
            r = _standardize(part, blocks, r, size, argument, BLOCK)
            g = _standardize(part + 2, blocks, g, size, argument, BLOCK)
            b = _standardize(part + 4, blocks, b, size, argument, BLOCK)
        if EQUALIZES:  # noqa: SIM102 - known while compiling, unlike the code
            if code == EQUALIZE:
                count = found + v * blocks * 768
                r = _equalize(count, blocks, r)
                g = _equalize(count + 256, blocks, g)
                b = _equalize(count + 512, blocks, b)
        _go_on(
            v, i, m, y, x, r, g, b, codes, args, P, at + 1, end, view, partial, counts, out, gain, bias,
            R, pixel_step, channel_step, EQUALIZES, BLOCK,
        )  # fmt: skip
