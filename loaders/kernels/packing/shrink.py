"""Shrinking an image with an antialiasing filter, in vectors that need no look-up.

Eight rows of the result at a time. Rows are blended first, sixteen bytes of each source row at a time, all
channels alike, and turned, so that the eight values of a column lie side by side. Then columns: a tap is one
load for eight rows. Weights are multiples of 2^-16, so that the first pass has no rounding, and the second is
fused: every machine gives the same bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from loaders.kernels.memory import entry, inner
from loaders.kernels.simd import rows_to_columns
from loaders.packs.stored.sizes import PLANE_CHANNELS, PLANE_COLUMNS, PLANE_OUT, PLANE_ROWS, PLANE_VALUES

_UNIT = 1 << 16
_LANES = 16
_ROWS = 8
_F32 = ir.FloatType()


@entry
def hamming_taps(sides, first, weights, num_taps, sums):
    """Fill the tables of Pillow's Hamming filter.

    Args:
        sides: float64 [S, 4], source pixels, output pixels, source pixels per output pixel, and entries of
            the table, of which those behind the last output pixel are as its own.
        first: int64, out: of all sides one behind the other, the first source pixel of each entry.
        weights: float32, out: likewise, the weight of each tap, a multiple of 2^-16.
        num_taps: int64 [S], out: taps of an entry.
        sums: float64 [>= taps of an entry], scratch.
    """
    at, weight_at = 0, 0
    for s in range(len(sides)):
        length, size, scale, num_places = int(sides[s, 0]), int(sides[s, 1]), sides[s, 2], int(sides[s, 3])
        reach, count = max(scale, 1.0), 0
        for p in range(num_places):
            begin, end = _window(p, length, size, scale, reach)
            count = max(count, end - begin)
        for p in range(num_places):
            begin, end = _window(p, length, size, scale, reach)
            start, center, total = min(begin, length - count), (min(p, size - 1) + 0.5) * scale, 0.0
            for t in range(count):
                distance = (start + t - center + 0.5) / reach
                if begin <= start + t < end and abs(distance) < 1:
                    angle = math.pi * distance
                    wave = math.sin(angle) / angle if distance != 0 else 1.0
                    total += wave * (0.54 + 0.46 * math.cos(angle))
                sums[t] = total
            # Rounded where they add up, so that they sum up to 1 and no error gathers over many taps.
            before = 0.0
            for t in range(count):
                here = np.rint(sums[t] / total * _UNIT)
                weights[weight_at + p * count + t] = np.float32((here - before) / _UNIT)
                before = here
            first[at + p] = start
        num_taps[s] = count
        at, weight_at = at + num_places, weight_at + num_places * count


@inner
def _window(place, length, size, scale, reach):
    """Return the first source pixel that an output pixel is made of, and the one behind the last."""
    center = (min(place, size - 1) + 0.5) * scale
    return max(0, int(center - reach + 0.5)), min(length, int(center + reach + 0.5))


def _blend(source: Any, lanes: int, rounds: bool) -> Any:
    """Return code that writes sum(weights[k] * source[at + k * step :]) to out[to : to + lanes]."""
    vector = ir.VectorType(_F32, lanes)
    ints = ir.VectorType(ir.IntType(32), lanes)
    small = ir.VectorType(ir.IntType(8), lanes)
    stored = ir.VectorType(source, lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 5)]
        to, at, step, first, count = (args[i] for i in (1, 3, 4, 6, 7))
        fused_type = ir.FunctionType(vector, [vector] * 3)
        fused = builder.module.declare_intrinsic(f"llvm.fma.v{lanes}f32", fnty=fused_type)
        held = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes))
        with cgutils.for_range(builder, count) as loop:
            weight = builder.load(builder.gep(pointers[2], [builder.add(first, loop.index)]))
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.IntType(32)(0))
            all_lanes = builder.shuffle_vector(one, one, ir.Constant(ints, [0] * lanes))
            place = builder.gep(pointers[1], [builder.add(at, builder.mul(loop.index, step))])
            value = builder.load(builder.bitcast(place, stored.as_pointer()))
            value.align = 1
            if source != _F32:
                value = builder.sitofp(builder.zext(value, ints), vector)
            builder.store(builder.call(fused, [all_lanes, value, builder.load(held)]), held)
        total = builder.load(held)
        if rounds:
            total = builder.fadd(total, ir.Constant(vector, [0.5] * lanes))
            total = builder.trunc(builder.fptosi(total, ints), small)
        place = builder.bitcast(builder.gep(pointers[0], [to]), total.type.as_pointer())
        builder.store(total, place).align = 1
        return context.get_dummy_value()

    return generate


def _signature(out: Any, source: Any, weights: Any) -> Any:
    at = types.intp
    return types.void(out, at, source, at, at, weights, at, at)


@intrinsic
def _blend_bytes(typing_context: Any, out: Any, to: Any, source: Any, at: Any, step: Any, weights: Any,
                 first: Any, count: Any) -> Any:  # fmt: skip
    """Write sixteen blended bytes as float32; see `_blend`."""
    return _signature(out, source, weights), _blend(ir.IntType(8), _LANES, rounds=False)


@intrinsic
def _blend_columns(typing_context: Any, out: Any, to: Any, source: Any, at: Any, step: Any, weights: Any,
                   first: Any, count: Any) -> Any:  # fmt: skip
    """Write the eight bytes of a blended column, rounded; see `_blend`."""
    return _signature(out, source, weights), _blend(_F32, _ROWS, rounds=True)


@intrinsic
def _bytes_to_rows(typing_context: Any, columns: Any, at: Any, out: Any, to: Any, pitch: Any) -> Any:
    """Copy eight bytes of eight columns, columns[at + 8 * x + k], to out[to + k * pitch + x]."""
    byte, word = ir.IntType(8), ir.IntType(32)
    whole, half, words = ir.VectorType(byte, 16), ir.VectorType(byte, 8), ir.VectorType(word, 4)

    def interleaved(builder: Any, a: Any, b: Any, count: int, high: int) -> Any:
        order = [n for i in range(count // 2) for n in (i + high * count // 2, i + high * count // 2 + count)]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(word, count), order))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        v = []
        for x in range(0, 8, 2):
            place = builder.gep(source, [builder.add(args[1], ir.Constant(args[1].type, 8 * x))])
            v.append(builder.load(builder.bitcast(place, whole.as_pointer())))
            v[-1].align = 1
        for _ in range(2):  # bytes of columns 0, 2 and 1, 3; then of 0 to 3: the lower rows, the upper
            v = [
                interleaved(builder, v[2 * i], v[2 * i + 1], 16, high) for i in range(2) for high in range(2)
            ]
        low, high = ([builder.bitcast(v[i], words) for i in (n, n + 2)] for n in (0, 1))
        rows = [interleaved(builder, a, b, 4, which) for a, b in (low, high) for which in range(2)]
        at = args[3]
        for two in rows:
            both = builder.bitcast(two, whole)
            for first in (0, 8):
                order = ir.Constant(ir.VectorType(word, 8), list(range(first, first + 8)))
                place = builder.bitcast(builder.gep(target, [at]), half.as_pointer())
                builder.store(builder.shuffle_vector(both, both, order), place).align = 1
                at = builder.add(at, args[4])
        return context.get_dummy_value()

    return types.void(columns, types.intp, out, types.intp, types.intp), generate


@entry
def shrink(data, places, facts, first, weights, floats, sums, out):
    """Resize some planes; see `loaders.packs.stored.shrink.shrink_planes`."""
    for plane in range(len(facts)):
        _shrink_plane(
            data, places[plane, 0], places[plane, 1], facts[plane], first, weights, floats, sums, out
        )


@inner
def _shrink_plane(data, begin, stride, facts, first, weights, floats, sums, out):
    tile, turned = floats[: _ROWS * _LANES], floats[_ROWS * _LANES :]
    num_values, channels, start = facts[PLANE_VALUES], facts[PLANE_CHANNELS], facts[PLANE_OUT]
    rows, columns = facts[PLANE_ROWS:], facts[PLANE_COLUMNS:]
    row_at, row_weights, row_taps, height = rows[0], rows[1], rows[2], rows[3]
    at, column_weights, taps, width = columns[0], columns[1], columns[2], columns[3]
    size = width * channels
    for top in range(0, height, _ROWS):
        members = min(_ROWS, height - top)
        for block in range(0, num_values, _LANES):
            i = min(block, num_values - _LANES)  # a part of the last ones twice
            for k in range(members):
                row = begin + first[row_at + top + k] * stride + i
                _blend_bytes(
                    tile, k * _LANES, data, row, stride, weights, row_weights + (top + k) * row_taps, row_taps
                )
            rows_to_columns(tile, 0, _LANES, turned, _ROWS * i)
            rows_to_columns(tile, _ROWS, _LANES, turned, _ROWS * (i + _ROWS))
        for x in range(width):
            for c in range(channels):
                source = _ROWS * (first[at + x] * channels + c)
                to = _ROWS * (x * channels + c)
                _blend_columns(
                    sums, to, turned, source, _ROWS * channels, weights, column_weights + x * taps, taps
                )
        _write_rows(sums, out, start + top * size, size, members)


@inner
def _write_rows(sums, out, to, size, members):
    """Turn finished columns into rows of the result."""
    if members == _ROWS and size >= _ROWS:
        for x in range(0, size, _ROWS):
            i = min(x, size - _ROWS)
            _bytes_to_rows(sums, _ROWS * i, out, to + i, size)
        return
    for k in range(members):
        for i in range(size):
            out[to + k * size + i] = sums[_ROWS * i + k]
