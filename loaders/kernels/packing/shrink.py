"""Shrink images with an antialiasing filter, by vector operations that need no table look-ups.

Eight rows of the result are computed at a time. First, source rows are blended, sixteen bytes at once
whatever their channels, and transposed, so that the eight values of a column are adjacent. Then columns are
blended, where one load is a tap for eight rows. Weights are multiples of 2^-16, so the first pass is exact in
float32; the second uses fused multiply-adds. So every machine gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from loaders.kernels.cache import exact_inlined, exact_kernel, first_use
from loaders.kernels.memory import operation
from loaders.kernels.shuffles import rows_to_columns

_UNIT = 1 << 16
_LANES = 16
_ROWS = 8
_F32 = ir.FloatType()


MIN_ROW_BYTES = 16  # least size of a source row: a whole vector
# Columns of `facts`: values per source row, values per pixel, where the result begins. Then come four numbers
# for the rows: where their table of first pixels and their table of weights begin, taps per pixel, number of
# rows. Four such numbers for the columns follow.
PLANE_VALUES, PLANE_CHANNELS, PLANE_OUT, PLANE_ROWS, PLANE_COLUMNS = 0, 1, 2, 3, 7


class Side(NamedTuple):
    """How one axis shrinks.

    Attributes:
        length: source pixels.
        size: output pixels.
        scale: source pixels per output pixel.
        num_places: output pixels including padding, which repeats the last one.
    """

    length: int
    size: int
    scale: float
    num_places: int


class Plane(NamedTuple):
    """How one plane of an image, or an image with interleaved channels, shrinks.

    Attributes:
        num_channels: values per pixel.
    """

    rows: Side
    columns: Side
    num_channels: int = 1

    @property
    def num_values(self) -> int:
        """Values per row of the source, which must be `MIN_ROW_BYTES` or more."""
        return self.columns.length * self.num_channels

    @property
    def size_bytes(self) -> int:
        """Bytes of the result."""
        return self.rows.num_places * self.columns.num_places * self.num_channels


class ShrinkPlan(NamedTuple):
    """Tables for shrinking some planes, whose results are stored one after the other.

    Attributes:
        facts: int64 [P, 11], a row per plane, with the columns `PLANE_...`.
        first: int64, all tables of first source pixels.
        weights: float32, all tables of weights.
        num_floats: size of the float32 scratch, enough for eight rows of the widest source.
        num_bytes: size of the uint8 scratch, enough for eight rows of the widest result.
        ends: where the result of each plane ends.
    """

    facts: NDArray[np.int64]
    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_floats: int
    num_bytes: int
    ends: tuple[int, ...]


@cache
def _load_kernels() -> None:
    """Load or compile the kernels once, before several threads do it at the same time."""
    with first_use("shrinking"):
        side = np.array([[16.0, 8.0, 2.0, 8.0]])
        first, weights = np.empty(8, np.int64), np.empty(48, np.float32)
        _hamming_taps(side, first, weights, np.empty(1, np.int64), np.empty(6))
        pixels, places, facts = np.empty(0, np.uint8), np.empty((0, 2), np.int64), np.empty((0, 11), np.int64)
        _shrink(pixels, places, facts, first, weights, weights, pixels, pixels)


@lru_cache(maxsize=512)
def plan_shrinking(planes: tuple[Plane, ...]) -> ShrinkPlan:
    """Return the tables for shrinking these planes; recent plans are cached."""
    _load_kernels()
    sides = [side for plane in planes for side in (plane.rows, plane.columns)]
    num_places = sum(side.num_places for side in sides)
    most_taps = max(int(2 * max(side.scale, 1.0)) + 2 for side in sides)
    first, weights = np.empty(num_places, np.int64), np.empty(num_places * most_taps, np.float32)
    taps, sums = np.empty(len(sides), np.int64), np.empty(most_taps)
    _hamming_taps(np.array(sides, np.float64), first, weights, taps, sums)
    counts = iter(zip(sides, taps.tolist(), strict=True))
    facts, ends, at, weight_at = [], [0], 0, 0
    for plane in planes:
        tables = []
        for side, count in islice(counts, 2):
            tables += [at, weight_at, count, side.num_places]
            at, weight_at = at + side.num_places, weight_at + side.num_places * count
        facts.append([plane.num_values, plane.num_channels, ends[-1], *tables])
        ends.append(ends[-1] + plane.size_bytes)
    return ShrinkPlan(
        np.array(facts, np.int64),
        first,
        weights,
        _ROWS * (_LANES + max(plane.num_values for plane in planes)),
        _ROWS * max(plane.columns.num_places * plane.num_channels for plane in planes),
        tuple(ends[1:]),
    )


def shrink_planes(
    out: NDArray[np.uint8],
    data: NDArray[np.uint8],
    places: NDArray[np.int64],
    plan: ShrinkPlan,
    floats: NDArray[np.float32],
    sums: NDArray[np.uint8],
) -> None:
    """Resize some planes as Pillow does with its Hamming filter, but round only once.

    Args:
        out: uint8 [>= plan.ends[-1]], receives the results one after the other.
        data: uint8, holds the sources.
        places: int64 [P, 2], where the source of each plane begins, and the bytes from row to row.
        floats: float32 [>= plan.num_floats], scratch.
        sums: uint8 [>= plan.num_bytes], scratch.
    """
    _shrink(data, places, plan.facts, plan.first, plan.weights, floats, sums, out)


def shrink_hamming(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize one image as `shrink_planes` does.

    Args:
        pixels: uint8 [H, W, 3], contiguous, W at least 6.
        height, width: size of the result.

    Returns:
        uint8 [height, width, 3], contiguous.
    """
    out = np.empty((height, width, 3), np.uint8)
    rows = Side(pixels.shape[0], height, pixels.shape[0] / height, height)
    columns = Side(pixels.shape[1], width, pixels.shape[1] / width, width)
    plan = plan_shrinking((Plane(rows, columns, 3),))
    floats, sums = np.empty(plan.num_floats, np.float32), np.empty(plan.num_bytes, np.uint8)
    places = np.array([[0, 3 * pixels.shape[1]]])
    shrink_planes(out.reshape(-1), pixels.reshape(-1), places, plan, floats, sums)
    return out


@exact_kernel
def _hamming_taps(sides, first, weights, num_taps, sums):
    """Fill the tables of Pillow's Hamming filter.

    Args:
        sides: float64 [S, 4], rows of `Side`: source pixels, output pixels, source pixels per output pixel,
            and entries of the table; entries after the last output pixel repeat that pixel's entry.
        first: int64, out: the first source pixel of each entry, one side after the other.
        weights: float32, out: the weights of each entry's taps, multiples of 2^-16, in the same order.
        num_taps: int64 [S], out: taps per entry.
        sums: float64 [>= taps per entry], scratch.
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
            # The running sums are rounded, not the weights, so that the weights add up to 1 and errors do not
            # accumulate over many taps.
            before = 0.0
            for t in range(count):
                here = np.rint(sums[t] / total * _UNIT)
                weights[weight_at + p * count + t] = np.float32((here - before) / _UNIT)
                before = here
            first[at + p] = start
        num_taps[s] = count
        at, weight_at = at + num_places, weight_at + num_places * count


@exact_inlined
def _window(place, length, size, scale, reach):
    """Return the range of source pixels that contribute to an output pixel, its end excluded."""
    center = (min(place, size - 1) + 0.5) * scale
    return max(0, int(center - reach + 0.5)), min(length, int(center + reach + 0.5))


def _folded(builder: Any, count: Any, start: Any, step: Callable[[Any, Any], Any]) -> Any:
    """Emit a loop that sets value = step(k, value) for k = 0 .. count - 1, and return the last value.

    The first value is `start`; `count` must be at least 1.
    """
    before = builder.block
    loop, behind = builder.append_basic_block("fold"), builder.append_basic_block("folded")
    builder.branch(loop)
    builder.position_at_end(loop)
    k, value = builder.phi(count.type), builder.phi(start.type)
    k.add_incoming(ir.Constant(count.type, 0), before)
    value.add_incoming(start, before)
    following, result = builder.add(k, ir.Constant(count.type, 1)), step(k, value)
    k.add_incoming(following, builder.block)
    value.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, behind)
    builder.position_at_end(behind)
    return result


def _blend(source: Any, lanes: int, rounds: bool) -> Any:
    """Return an operation that writes a weighted sum of vectors to out[to : to + lanes].

    The sum is that of weights[first + k] * data[at + k * step :] over k < count, as bytes if `rounds`. The
    operation takes out, to, data (elements of LLVM type `source`), at, step, weights, first and count.
    """
    vector = ir.VectorType(_F32, lanes)
    ints = ir.VectorType(ir.IntType(32), lanes)
    small = ir.VectorType(ir.IntType(8), lanes)
    stored = ir.VectorType(source, lanes)

    @operation(types.void, None, types.intp, None, types.intp, types.intp, None, types.intp, types.intp)
    def blend(context, builder, kinds, *args):
        pointers = [context.make_array(kinds[i])(context, builder, args[i]).data for i in (0, 2, 5)]
        to, at, step, first, count = (args[i] for i in (1, 3, 4, 6, 7))
        fused_type = ir.FunctionType(vector, [vector] * 3)
        fused = builder.module.declare_intrinsic(f"llvm.fma.v{lanes}f32", fnty=fused_type)

        def tap(k: Any, total: Any) -> Any:
            weight = builder.load(builder.gep(pointers[2], [builder.add(first, k)]))
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.IntType(32)(0))
            all_lanes = builder.shuffle_vector(one, one, ir.Constant(ints, [0] * lanes))
            place = builder.gep(pointers[1], [builder.add(at, builder.mul(k, step))])
            value = builder.load(builder.bitcast(place, stored.as_pointer()))
            value.align = 1
            if source != _F32:
                value = builder.sitofp(builder.zext(value, ints), vector)
            return builder.call(fused, [all_lanes, value, total])

        total = _folded(builder, count, ir.Constant(vector, [0.0] * lanes), tap)
        if rounds:
            total = builder.fadd(total, ir.Constant(vector, [0.5] * lanes))
            total = builder.trunc(builder.fptosi(total, ints), small)
        place = builder.bitcast(builder.gep(pointers[0], [to]), total.type.as_pointer())
        builder.store(total, place).align = 1

    return blend


_blend_bytes = _blend(ir.IntType(8), _LANES, rounds=False)  # blends sixteen bytes to float32
_blend_columns = _blend(_F32, _ROWS, rounds=True)  # blends eight float32 of a column to rounded bytes


@operation(types.void, None, types.intp, None, types.intp, types.intp)
def _bytes_to_rows(context, builder, kinds, columns, at, out, to, pitch):
    """Copy eight columns of eight bytes, columns[at + 8 * x + k], to eight rows, out[to + k * pitch + x]."""
    byte, word = ir.IntType(8), ir.IntType(32)
    whole, half, words = ir.VectorType(byte, 16), ir.VectorType(byte, 8), ir.VectorType(word, 4)

    def interleaved(builder: Any, a: Any, b: Any, count: int, high: int) -> Any:
        order = [n for i in range(count // 2) for n in (i + high * count // 2, i + high * count // 2 + count)]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(word, count), order))

    arrays = (kinds[0], columns), (kinds[2], out)
    source, target = (context.make_array(kind)(context, builder, array).data for kind, array in arrays)
    v = []
    for x in range(0, 8, 2):
        place = builder.gep(source, [builder.add(at, ir.Constant(at.type, 8 * x))])
        v.append(builder.load(builder.bitcast(place, whole.as_pointer())))
        v[-1].align = 1
    # Interleave columns 0 and 2, and 1 and 3, then all four: first rows 0 to 3, then rows 4 to 7.
    # Columns 4 to 7 likewise.
    for _ in range(2):
        v = [interleaved(builder, v[2 * i], v[2 * i + 1], 16, high) for i in range(2) for high in range(2)]
    low, high = ([builder.bitcast(v[i], words) for i in (n, n + 2)] for n in (0, 1))
    rows = [interleaved(builder, a, b, 4, which) for a, b in (low, high) for which in range(2)]
    for two in rows:
        both = builder.bitcast(two, whole)
        for first in (0, 8):
            order = ir.Constant(ir.VectorType(word, 8), list(range(first, first + 8)))
            place = builder.bitcast(builder.gep(target, [to]), half.as_pointer())
            builder.store(builder.shuffle_vector(both, both, order), place).align = 1
            to = builder.add(to, pitch)


@exact_kernel
def _shrink(data, places, facts, first, weights, floats, sums, out):
    for plane in range(len(facts)):
        _shrink_plane(
            data, places[plane, 0], places[plane, 1], facts[plane], first, weights, floats, sums, out
        )


@exact_inlined
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
            i = min(block, num_values - _LANES)  # the last block may overlap the one before it
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


@exact_inlined
def _write_rows(sums, out, to, size, members):
    """Transpose finished columns into `members` rows of the result."""
    if members == _ROWS and size >= _ROWS:
        for x in range(0, size, _ROWS):
            i = min(x, size - _ROWS)
            _bytes_to_rows(sums, _ROWS * i, out, to + i, size)
        return
    for k in range(members):
        for i in range(size):
            out[to + k * size + i] = sums[_ROWS * i + k]
