"""Shrinking an image with an antialiasing filter, in vectors that run along rows.

Rows are blended first, which needs no look-ups: sixteen bytes of each source row at a time, all channels
alike. Then columns, one pixel of three channels and a spare lane at a time. Weights are multiples of 2^-16,
so that the first pass has no rounding, and the second is fused: every machine gives the same bytes.
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

_LANES = 16
_PIXEL_LANES = 4
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
def _hamming_taps(length: int, size: int) -> _Taps:
    """Return the taps of Pillow's Hamming filter for `length` source pixels and `size` output pixels."""
    scale = length / size
    reach = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
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


def shrink_hamming(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize as Pillow does with its Hamming filter, rounding once.

    Args:
        pixels: uint8 [H, W, 3], contiguous, at least 6 wide.
        height: rows of the result.
        width: columns of the result.

    Returns:
        uint8 [height, width, 3], contiguous.
    """
    rows, columns = _hamming_taps(pixels.shape[0], height), _hamming_taps(pixels.shape[1], width)
    line = np.empty(3 * pixels.shape[1] + 1, np.float32)
    out = np.empty(3 * height * width + 1, np.uint8)
    _shrink(pixels.reshape(-1), line, out, *rows, *columns)
    return out[:-1].reshape(height, width, 3)


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
def _blend_pixel(typing_context: Any, out: Any, to: Any, source: Any, at: Any, step: Any, weights: Any,
                 first: Any, count: Any) -> Any:  # fmt: skip
    """Write a blended pixel and a byte behind it, rounded; see `_blend`."""
    return _signature(out, source, weights), _blend(_F32, _PIXEL_LANES, rounds=True)


@kernel
def _shrink(data, line, out, row_first, row_weights, row_count, first, weights, count):
    pitch = len(line) - 1
    height, width = len(row_first), len(first)
    for y in range(height):
        at = row_first[y] * pitch
        for i in range(0, pitch - _LANES, _LANES):
            _blend_bytes(line, i, data, at + i, pitch, row_weights, y * row_count, row_count)
        i = pitch - _LANES  # once more for a part of the last ones
        _blend_bytes(line, i, data, at + i, pitch, row_weights, y * row_count, row_count)
        for x in range(width):
            _blend_pixel(out, 3 * (y * width + x), line, 3 * first[x], 3, weights, x * count, count)
