"""Convert luma and chroma of a JPEG to red, green and blue, bit for bit like libjpeg-turbo.

Chroma of half the size is enlarged by a triangle filter: a pixel lies a quarter of a step from one value and
three quarters from the next. The vertical direction comes first, and there is one rounding at the end.

Source: ITU-T T.871 (JFIF), section 7, with 16 fractional bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from loaders.kernels.cache import inlined
from loaders.kernels.memory import operation
from loaders.kernels.simd import LANES

# Factors, split into a whole number and a remainder in units of 1 / 65536.
_RED, _RED_WHOLE = 91881 - 65536, 1  # 1.402
_GREEN_RED, _GREEN_RED_WHOLE = 65536 - 46802, -1  # -0.71414
_GREEN_BLUE = -22554  # -0.34414
_BLUE, _BLUE_WHOLE = 116130 - 131072, 2  # 1.772
_HALF = 1 << 15
_BYTES, _SHORTS = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_AT = types.int64


def _constant(kind: Any, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _load(builder: Any, place: Any, kind: Any, align: int) -> Any:
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = align
    return value


@operation(types.void, None, _AT, _AT, None, _AT)
def _sum_rows(context, builder, kinds, samples, near, far, sums, to):
    """Write 3 samples[near + i] + samples[far + i] to sums[to + i] for i < LANES."""
    rows = []
    for at in (near, far):
        place = _place(context, builder, kinds[0], samples, at)
        rows.append(builder.zext(_load(builder, place, _BYTES, 1), _SHORTS))
    total = builder.add(builder.mul(rows[0], _constant(_SHORTS, 3)), rows[1])
    place = _place(context, builder, kinds[3], sums, to)
    builder.store(total, builder.bitcast(place, _SHORTS.as_pointer())).align = 2


@operation(types.void, None, _AT, _AT, _AT, None, _AT)
def _round_sums(context, builder, kinds, sums, at, bias, shift, out, to):
    """Write (sums[at + i] + bias) >> shift to out[to + i] for i < LANES."""
    value = _load(builder, _place(context, builder, kinds[0], sums, at), _SHORTS, 2)
    bias, shift = (_splat(builder, value) for value in (bias, shift))
    value = builder.trunc(builder.lshr(builder.add(value, bias), shift), _BYTES)
    place = _place(context, builder, kinds[4], out, to)
    builder.store(value, builder.bitcast(place, _BYTES.as_pointer())).align = 1


@operation(types.void, None, _AT, _AT, _AT, _AT, None, _AT)
def _double_sums(context, builder, kinds, sums, at, even, odd, shift, out, to):
    """Enlarge LANES sums to twice as many bytes.

    With s = sums[at :] and i < LANES, out[to + 2 i] = (3 s[i] + s[i - 1] + even) >> shift, and
    out[to + 2 i + 1] = (3 s[i] + s[i + 1] + odd) >> shift.
    """
    steps = (builder.add(at, ir.Constant(at.type, step)) for step in (-1, 0, 1))
    before, here, behind = (
        _load(builder, _place(context, builder, kinds[0], sums, step), _SHORTS, 2) for step in steps
    )
    most = builder.mul(here, _constant(_SHORTS, 3))
    shift = _splat(builder, shift)
    both = []
    for other, bias in ((before, even), (behind, odd)):
        total = builder.add(builder.add(most, other), _splat(builder, bias))
        both.append(builder.trunc(builder.lshr(total, shift), _BYTES))
    order = [i + LANES * side for i in range(LANES) for side in range(2)]
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order)
    value = builder.shuffle_vector(*both, lanes)
    place = _place(context, builder, kinds[5], out, to)
    builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = 1


def _splat(builder: Any, value: Any) -> Any:
    """Return a vector of int16 with an int64, truncated, in every lane."""
    value = builder.trunc(value, ir.IntType(16))
    one = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, _constant(_INTS, 0))


@operation(types.void, None, _AT, None, _AT, None, _AT, None, _AT, _AT)
def _convert(context, builder, kinds, luma, y, blue, cb, red, cr, planes, to, plane):
    """Convert LANES pixels, luma[y :], blue[cb :] and red[cr :], to three planes from planes[to :] on."""
    found = []
    for kind, samples, at in ((kinds[0], luma, y), (kinds[2], blue, cb), (kinds[4], red, cr)):
        place = _place(context, builder, kind, samples, at)
        found.append(builder.zext(_load(builder, place, _BYTES, 1), _INTS))
    middle = _constant(_INTS, 128)
    cb_values, cr_values = (builder.sub(value, middle) for value in found[1:])

    def scaled(value: Any, factor: int) -> Any:
        return builder.mul(value, _constant(_INTS, factor))

    def finished(whole: Any, parts: Any) -> Any:
        rounded = builder.add(parts, _constant(_INTS, _HALF))
        total = builder.add(builder.add(found[0], whole), builder.ashr(rounded, _constant(_INTS, 16)))
        low, high = _constant(_INTS, 0), _constant(_INTS, 255)
        total = builder.select(builder.icmp_signed(">", total, low), total, low)
        return builder.trunc(builder.select(builder.icmp_signed("<", total, high), total, high), _BYTES)

    green = builder.add(scaled(cr_values, _GREEN_RED), scaled(cb_values, _GREEN_BLUE))
    channels = (
        finished(scaled(cr_values, _RED_WHOLE), scaled(cr_values, _RED)),
        finished(scaled(cr_values, _GREEN_RED_WHOLE), green),
        finished(scaled(cb_values, _BLUE_WHOLE), scaled(cb_values, _BLUE)),
    )
    for value in channels:
        place = _place(context, builder, kinds[6], planes, to)
        builder.store(value, builder.bitcast(place, _BYTES.as_pointer())).align = 1
        to = builder.add(to, plane)


@inlined
def enlarge_row(samples, first, stride, height, width, y, left, count, h, v, sums, out):
    """Write one chroma channel of `count` pixels of row y from column `left` on; return its index in `out`.

    Args:
        samples: uint8, the stored channel: row r, column c is at first + r * stride + c. It must hold the
            rows and columns of the pixels, one more on each side where the image has it, and LANES bytes of
            slack.
        height, width: size of the stored channel of the whole image.
        h, v: pixels per stored value across and down, 1 or 2, not both 1.
        sums: int16 [>= count + 2 LANES], scratch.
        out: uint8 [>= count + 2 LANES], out; the pixels begin at the returned index.
    """
    near = first + (y >> (v - 1)) * stride
    far = near
    if v == 2:
        step = 1 if y & 1 else -1
        if 0 <= (y >> 1) + step < height:
            far += step * stride
    begin, end = left >> (h - 1), ((left + count - 1) >> (h - 1)) + 1
    low, high = max(begin - 1, 0), min(end + 1, width)
    # sums[1] belongs to column `begin`. If near and far are the same row, a sum is four times the value.
    for x in range(low, high, LANES):
        _sum_rows(samples, near + x, far + x, sums, 1 + x - begin)
    if h == 1:
        for x in range(0, end - begin, LANES):
            _round_sums(sums, 1 + x, 2 if y & 1 else 1, 2, out, x)
        return 0
    if low == begin:
        sums[0] = sums[1]
    if high == end:
        sums[1 + end - begin] = sums[end - begin]
    even, odd, shift = (8, 7, 4) if v == 2 else (4, 8, 4)
    for x in range(0, end - begin, LANES):
        _double_sums(sums, 1 + x, even, odd, shift, out, 2 * x)
    return left & 1


@inlined
def convert_row(samples, at, blue, cb, red, cr, count, planes, to, plane, narrow):
    """Write `count` pixels of a row to three planes.

    Args:
        samples: uint8, luma from index `at` on, followed by LANES bytes of slack.
        blue, red: uint8, Cb and Cr from the indices `cb` and `cr` on, with the same slack.
        planes: uint8, out: red, green and blue begin at `to`, `to` + `plane` and `to` + 2 `plane`.
        narrow: uint8 [3 * LANES], scratch.
    """
    if count < LANES:
        _convert(samples, at, blue, cb, red, cr, narrow, 0, LANES)
        for c in range(3):
            for x in range(count):
                planes[to + c * plane + x] = narrow[c * LANES + x]
        return
    for start in range(0, count, LANES):
        i = min(start, count - LANES)  # the last block may overlap the one before it
        _convert(samples, at + i, blue, cb + i, red, cr + i, planes, to + i, plane)
