"""From luma and colours as a JPEG stores them to red, green and blue, bit for bit like libjpeg-turbo.

Colours of half the size are brought to full size by a triangle filter: a pixel lies a quarter of a step from
one value and three quarters from the next. Columns come first, and there is one rounding at the end.

Source: ITU-T T.871 (JFIF), section 7, with 16 bits behind the point.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from loaders.kernels.cache import inlined
from loaders.kernels.simd import LANES

# Factors in units of 1 / 65536, split into a whole number and a rest of at most 16 bits.
_RED, _RED_WHOLE = 91881 - 65536, 1  # 1.402
_GREEN_RED, _GREEN_RED_WHOLE = 65536 - 46802, -1  # -0.71414
_GREEN_BLUE = -22554  # -0.34414
_BLUE, _BLUE_WHOLE = 116130 - 131072, 2  # 1.772
_HALF = 1 << 15
_BYTES, _SHORTS = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


def _constant(kind: Any, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _load(builder: Any, place: Any, kind: Any, align: int) -> Any:
    value = builder.load(builder.bitcast(place, kind.as_pointer()))
    value.align = align
    return value


@intrinsic
def _sum_rows(typing_context: Any, samples: Any, near: Any, far: Any, sums: Any, to: Any) -> Any:
    """Write 3 samples[near + i] + samples[far + i] to sums[to + i], LANES of them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = []
        for at in args[1:3]:
            place = _place(context, builder, signature.args[0], args[0], at)
            rows.append(builder.zext(_load(builder, place, _BYTES, 1), _SHORTS))
        total = builder.add(builder.mul(rows[0], _constant(_SHORTS, 3)), rows[1])
        place = _place(context, builder, signature.args[3], args[3], args[4])
        builder.store(total, builder.bitcast(place, _SHORTS.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(samples, types.int64, types.int64, sums, types.int64), generate


@intrinsic
def _round_sums(typing_context: Any, sums: Any, at: Any, bias: Any, shift: Any, out: Any, to: Any) -> Any:
    """Write (sums[at + i] + bias) >> shift to out[to + i], LANES of them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _load(builder, _place(context, builder, signature.args[0], args[0], args[1]), _SHORTS, 2)
        bias, shift = (_splat(builder, arg) for arg in args[2:4])
        value = builder.trunc(builder.lshr(builder.add(value, bias), shift), _BYTES)
        place = _place(context, builder, signature.args[4], args[4], args[5])
        builder.store(value, builder.bitcast(place, _BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    i = types.int64
    return types.void(sums, i, i, i, out, i), generate


@intrinsic
def _double_sums(
    typing_context: Any, sums: Any, at: Any, even: Any, odd: Any, shift: Any, out: Any, to: Any
) -> Any:
    """Enlarge LANES sums to twice as many bytes.

    out[to + 2 i] = (3 s[i] + s[i - 1] + even) >> shift and out[to + 2 i + 1] = (3 s[i] + s[i + 1] + odd) >>
    shift, where s = sums[at :].
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        before, here, behind = (
            _load(
                builder,
                _place(
                    context,
                    builder,
                    signature.args[0],
                    args[0],
                    builder.add(args[1], ir.Constant(ir.IntType(64), step)),
                ),
                _SHORTS,
                2,
            )
            for step in (-1, 0, 1)
        )
        most = builder.mul(here, _constant(_SHORTS, 3))
        shift = _splat(builder, args[4])
        both = []
        for other, bias in ((before, args[2]), (behind, args[3])):
            total = builder.add(builder.add(most, other), _splat(builder, bias))
            both.append(builder.trunc(builder.lshr(total, shift), _BYTES))
        order = [i + LANES * side for i in range(LANES) for side in range(2)]
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order)
        value = builder.shuffle_vector(*both, lanes)
        place = _place(context, builder, signature.args[5], args[5], args[6])
        builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = 1
        return context.get_dummy_value()

    i = types.int64
    return types.void(sums, i, i, i, i, out, i), generate


def _splat(builder: Any, value: Any) -> Any:
    """Return an int64 in every lane of int16."""
    value = builder.trunc(value, ir.IntType(16))
    one = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, _constant(_INTS, 0))


@intrinsic
def _convert(
    typing_context: Any,
    luma: Any,
    y: Any,
    blue: Any,
    cb: Any,
    red: Any,
    cr: Any,
    planes: Any,
    to: Any,
    plane: Any,
) -> Any:
    """Convert LANES pixels, luma[y :], blue[cb :] and red[cr :], to three planes from planes[to :] on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = []
        for i in (0, 2, 4):
            place = _place(context, builder, signature.args[i], args[i], args[i + 1])
            found.append(builder.zext(_load(builder, place, _BYTES, 1), _INTS))
        y, middle = found[0], _constant(_INTS, 128)
        cb, cr = (builder.sub(value, middle) for value in found[1:])

        def scaled(value: Any, factor: int) -> Any:
            return builder.mul(value, _constant(_INTS, factor))

        def finished(whole: Any, parts: Any) -> Any:
            rounded = builder.add(parts, _constant(_INTS, _HALF))
            total = builder.add(builder.add(y, whole), builder.ashr(rounded, _constant(_INTS, 16)))
            low, high = _constant(_INTS, 0), _constant(_INTS, 255)
            total = builder.select(builder.icmp_signed(">", total, low), total, low)
            return builder.trunc(builder.select(builder.icmp_signed("<", total, high), total, high), _BYTES)

        channels = (
            finished(scaled(cr, _RED_WHOLE), scaled(cr, _RED)),
            finished(
                scaled(cr, _GREEN_RED_WHOLE), builder.add(scaled(cr, _GREEN_RED), scaled(cb, _GREEN_BLUE))
            ),
            finished(scaled(cb, _BLUE_WHOLE), scaled(cb, _BLUE)),
        )
        at = args[7]
        for value in channels:
            place = _place(context, builder, signature.args[6], args[6], at)
            builder.store(value, builder.bitcast(place, _BYTES.as_pointer())).align = 1
            at = builder.add(at, args[8])
        return context.get_dummy_value()

    i = types.int64
    return types.void(luma, i, blue, i, red, i, planes, i, i), generate


@inlined
def enlarge_row(samples, first, stride, height, width, y, left, count, h, v, sums, out):
    """Write a colour of `count` pixels of row y from column `left` on; return where in `out` it begins.

    Args:
        samples: uint8, the colour: row r, column c at first + r * stride + c. Valid are the rows and columns
            of the pixels and, where the image has them, one before and one after; LANES more behind.
        height, width: of the colour in the whole image.
        h, v: pixels of a value across and down, 1 or 2, not both 1.
        sums: int16 [>= count + 2 LANES], scratch.
        out: uint8 [>= count + 2 LANES].
    """
    near = first + (y >> (v - 1)) * stride
    far = near
    if v == 2:
        step = 1 if y & 1 else -1
        if 0 <= (y >> 1) + step < height:
            far += step * stride
    begin, end = left >> (h - 1), ((left + count - 1) >> (h - 1)) + 1
    low, high = max(begin - 1, 0), min(end + 1, width)
    # The value of column `begin` stands at 1. With one row, a sum is four times the value.
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
        samples: uint8, luma from `at` on; blue, red: uint8, Cb and Cr from `cb` and `cr` on; LANES more
            behind each.
        planes: uint8, out: from `to`, `to` + `plane` and `to` + 2 `plane` on.
        narrow: uint8 [3 * LANES], scratch.
    """
    if count < LANES:
        _convert(samples, at, blue, cb, red, cr, narrow, 0, LANES)
        for c in range(3):
            for x in range(count):
                planes[to + c * plane + x] = narrow[c * LANES + x]
        return
    for start in range(0, count, LANES):
        i = min(start, count - LANES)  # the last block may repeat some pixels
        _convert(samples, at + i, blue, cb + i, red, cr + i, planes, to + i, plane)
