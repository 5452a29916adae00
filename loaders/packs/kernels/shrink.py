"""Shrinking an image with an antialiasing filter, in vectors that need no look-up.

Eight rows of the result at a time. Rows are blended first, sixteen bytes of each source row at a time, all
channels alike, and turned, so that the eight values of a column lie side by side. Then columns: a tap is one
load for eight rows. Weights are multiples of 2^-16, so that the first pass has no rounding, and the second is
fused: every machine gives the same bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from loaders.packs.kernels.memory import kernel
from loaders.views.kernels.simd import rows_to_columns

MIN_ROW_BYTES = 16  # of the source: a whole vector
_LANES = 16
_ROWS = 8
_UNIT = 1 << 16
_F32 = ir.FloatType()


class _Taps(NamedTuple):
    """Table of one axis.

    Attributes:
        first: int64 [P], first source pixel of each output pixel.
        weights: float32 [P * T], weight of tap t for output p at p * T + t.
        num_taps: T.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_taps: int


@lru_cache(maxsize=2048)
def _hamming_taps(length: int, size: int, scale: float, num_places: int) -> _Taps:
    """Return the taps of Pillow's Hamming filter.

    Args:
        length: source pixels.
        size: output pixels.
        scale: source pixels per output pixel.
        num_places: entries of the table; those behind `size` are as the last output pixel.
    """
    reach = max(scale, 1.0)
    centers = (np.minimum(np.arange(num_places), size - 1) + 0.5) * scale
    begins = np.maximum(0, (centers - reach + 0.5).astype(np.int64))
    ends = np.minimum(length, (centers + reach + 0.5).astype(np.int64))
    count = int((ends - begins).max())
    first = np.minimum(begins, length - count)
    places = first[:, None] + np.arange(count)
    distances = (places - centers[:, None] + 0.5) / reach
    window = np.sinc(distances) * (0.54 + 0.46 * np.cos(np.pi * distances))
    inside = (places >= begins[:, None]) & (places < ends[:, None]) & (np.abs(distances) < 1)
    window = np.where(inside, window, 0.0)
    # Rounded where they add up, so that they sum up to 1 and no error gathers over many taps.
    parts = np.cumsum(window, axis=1) / window.sum(axis=1, keepdims=True)
    weights = np.diff(np.rint(parts * _UNIT), axis=1, prepend=0.0)
    return _Taps(first, (weights / _UNIT).astype(np.float32).ravel(), count)


class Side(NamedTuple):
    """How one axis shrinks.

    Attributes:
        length: source pixels.
        size: output pixels.
        scale: source pixels per output pixel.
        num_places: output pixels with padding, which repeats the last one.
    """

    length: int
    size: int
    scale: float
    num_places: int


def shrink_hamming(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize as Pillow does with its Hamming filter, rounding once.

    Args:
        pixels: uint8 [H, W, 3], contiguous, at least 6 wide.
        height: rows of the result.
        width: columns of the result.

    Returns:
        uint8 [height, width, 3], contiguous.
    """
    out = np.empty((height, width, 3), np.uint8)
    rows = Side(pixels.shape[0], height, pixels.shape[0] / height, height)
    columns = Side(pixels.shape[1], width, pixels.shape[1] / width, width)
    shrink_into(out.reshape(-1), pixels.reshape(-1), 3 * pixels.shape[1], rows, columns, 3)
    return out


def shrink_into(
    out: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    stride: int,
    rows: Side,
    columns: Side,
    num_channels: int = 1,
) -> None:
    """Resize one image or one plane of it.

    Args:
        out: uint8 [rows.num_places * columns.num_places * num_channels], result.
        pixels: uint8 [>= rows.length * stride], source rows.
        stride: bytes from one source row to the next; a row has at least `MIN_ROW_BYTES` bytes.
        rows: how many rows become how many.
        columns: the same for columns.
        num_channels: values of a pixel, side by side.
    """
    num_values = columns.length * num_channels
    tile = np.empty(_ROWS * _LANES, np.float32)
    turned = np.empty(_ROWS * num_values, np.float32)
    sums = np.empty(_ROWS * columns.num_places * num_channels, np.uint8)
    tables = *_hamming_taps(*rows), *_hamming_taps(*columns)
    _shrink(pixels, stride, num_values, num_channels, tile, turned, sums, out, *tables)


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


@kernel
def _shrink(data, stride, num_values, channels, tile, turned, sums, out,
            row_first, row_weights, row_count, first, weights, count):  # fmt: skip
    height, size = len(row_first), len(first) * channels
    for top in range(0, height, _ROWS):
        members = min(_ROWS, height - top)
        for start in range(0, num_values, _LANES):
            i = min(start, num_values - _LANES)  # a part of the last ones twice
            for k in range(members):
                at = row_first[top + k] * stride + i
                _blend_bytes(
                    tile, k * _LANES, data, at, stride, row_weights, (top + k) * row_count, row_count
                )
            rows_to_columns(tile, 0, _LANES, turned, _ROWS * i)
            rows_to_columns(tile, _ROWS, _LANES, turned, _ROWS * (i + _ROWS))
        for x in range(len(first)):
            for c in range(channels):
                at = _ROWS * (first[x] * channels + c)
                to = _ROWS * (x * channels + c)
                _blend_columns(sums, to, turned, at, _ROWS * channels, weights, x * count, count)
        for k in range(members):
            row = out[(top + k) * size : (top + k + 1) * size]
            for i in range(size):
                row[i] = sums[_ROWS * i + k]
