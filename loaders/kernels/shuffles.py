"""Vector operations that move values between lanes: table look-ups, and transposing blocks of values.

LLVM does not recognise these in plain loops. Indices are not checked, as in `loaders.kernels.simd`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from loaders.kernels.memory import operation
from loaders.kernels.simd import (
    F32,
    F32V,
    FLOATS,
    HAS_AVX512,
    HAS_SSSE3,
    I32,
    I32V,
    INTS,
    LANES,
    choose,
    load_vector,
    pointer_to,
)


@operation(FLOATS, None, types.intp, None, types.intp)
def lookup_bytes(context, builder, kinds, array, at, order, place):
    """Return array[at + order[place + lane]] as float32 per lane.

    Both arrays are uint8, and the values of `order` are below 16. With SSSE3, array[at : at + 16] is loaded
    once and permuted; elsewhere this takes sixteen scalar loads.
    """
    byte, bytes16 = ir.IntType(8), ir.VectorType(ir.IntType(8), LANES)
    table = pointer_to(context, builder, kinds[0], array, at, byte)
    index = pointer_to(context, builder, kinds[2], order, place, byte)
    index = load_vector(builder, index, bytes16, 1)
    if HAS_SSSE3:
        kind = ir.FunctionType(bytes16, [bytes16, bytes16])
        permute = builder.module.declare_intrinsic("llvm.x86.ssse3.pshuf.b.128", fnty=kind)
        raw = builder.call(permute, [load_vector(builder, table, bytes16, 1), index])
    else:
        raw = _gathered(builder, table, builder.zext(index, I32V), bytes16)
    return builder.sitofp(builder.zext(raw, I32V), F32V)


@operation(FLOATS, FLOATS)
def reverse(context, builder, kinds, value):
    """Return the lanes of a vector from last to first."""
    order = ir.Constant(I32V, list(range(LANES - 1, -1, -1)))
    return builder.shuffle_vector(value, value, order)


@operation(FLOATS, None, types.intp, INTS)
def lookup(context, builder, kinds, array, at, index):
    """Return array[at + (index[lane] & 15)] per lane of a contiguous float32 array.

    With AVX-512 this takes one load and one permute, elsewhere sixteen scalar loads, which only tests use.
    """
    pointer = pointer_to(context, builder, kinds[0], array, at, F32)
    if HAS_AVX512:
        return _permute512(builder, load_vector(builder, pointer, F32V, 4), index)
    return _permute_scalar(builder, pointer, index)


@operation(FLOATS, None, types.intp, INTS)
def lookup_wide(context, builder, kinds, array, at, index):
    """Return array[at + (index[lane] & 31)] per lane of a contiguous float32 array.

    With AVX-512 this takes two loads and one permute, elsewhere twice the work of `lookup`.
    """
    pointer = pointer_to(context, builder, kinds[0], array, at, F32)
    behind = builder.gep(pointer, [ir.Constant(I32, LANES)])
    if HAS_AVX512:
        near, far = (load_vector(builder, place, F32V, 4) for place in (pointer, behind))
        kind = ir.FunctionType(F32V, [F32V, I32V, F32V])
        permute = builder.module.declare_intrinsic("llvm.x86.avx512.vpermi2var.ps.512", fnty=kind)
        return builder.call(permute, [near, index, far])
    bit = builder.and_(index, ir.Constant(I32V, [LANES] * LANES))
    is_far = builder.icmp_signed("!=", bit, ir.Constant(I32V, [0] * LANES))
    return builder.select(
        is_far, _permute_scalar(builder, behind, index), _permute_scalar(builder, pointer, index)
    )


@operation(FLOATS, types.intp, INTS, FLOATS, FLOATS)
def pick_from(context, builder, kinds, window, index, inside, outside):
    """Return `inside` in the lanes whose index // 32 equals `window`, `outside` in the others."""
    window = builder.trunc(window, I32) if window.type.width > 32 else window
    one = builder.insert_element(ir.Constant(I32V, ir.Undefined), window, ir.Constant(I32, 0))
    wanted = builder.shuffle_vector(one, ir.Constant(I32V, ir.Undefined), ir.Constant(I32V, [0] * LANES))
    number = builder.lshr(index, ir.Constant(I32V, [5] * LANES))
    return builder.select(builder.icmp_signed("==", number, wanted), inside, outside)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of eight rows of eight floats."""

    def mix(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 8), order))

    # Interleave values within each half, then pairs of values, then join halves. A `mix` is one instruction.
    singles = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    doubles = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    halves = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    pairs = [mix(rows[i], rows[i + 1], order) for i in (0, 2, 4, 6) for order in singles]
    fours = [mix(pairs[i], pairs[i + 2], order) for i in (0, 1, 4, 5) for order in doubles]
    return [mix(fours[i], fours[i + 4], order) for order in halves for i in range(4)]


@operation(types.void, None, types.intp, types.intp, None, types.intp)
def rows_to_columns(context, builder, kinds, rows, at, pitch, columns, to):
    """Copy rows[at + k * pitch + x] to columns[to + 8 * x + k] for k and x below 8; both are float32."""
    rows_type, columns_type = kinds[0], kinds[3]
    eight = ir.VectorType(F32, 8)
    found = []
    for _ in range(8):
        pointer = pointer_to(context, builder, rows_type, rows, at, F32)
        found.append(load_vector(builder, pointer, eight, 4))
        at = builder.add(at, pitch)
    for x, column in enumerate(_transposed(builder, found)):
        place = builder.add(to, ir.Constant(to.type, 8 * x))
        pointer = pointer_to(context, builder, columns_type, columns, place, F32)
        builder.store(column, builder.bitcast(pointer, eight.as_pointer())).align = 4


@operation(types.void, None, types.intp, None, types.intp, types.intp, types.intp)
def columns_to_rows(context, builder, kinds, sums, at, rows, to, pitch, count):
    """Add up the partial sums of eight columns and write the totals as rows.

    For column x, sums[at + 16 * x :] holds two vectors of eight partial sums, one element per row. The totals
    are clamped to [0, 255] and go to rows[to + k * pitch + x] for k < `count`. Each row is given eight
    values, even if it is shorter. If `count` is below 8, sums[at : at + 8] is overwritten.
    """
    sums_type, rows_type = kinds[0], kinds[2]
    eight = ir.VectorType(F32, 8)
    low, high = ir.Constant(eight, [0.0] * 8), ir.Constant(eight, [255.0] * 8)
    columns = []
    for x in range(8):
        halves = []
        for half in range(2):
            place = builder.add(at, ir.Constant(at.type, 16 * x + 8 * half))
            pointer = pointer_to(context, builder, sums_type, sums, place, F32)
            halves.append(load_vector(builder, pointer, eight, 4))
        total = choose(builder, ">", builder.fadd(*halves), low)
        columns.append(choose(builder, "<", total, high))
    aside = pointer_to(context, builder, sums_type, sums, at, F32)
    for k, row in enumerate(_transposed(builder, columns)):
        # From the top down, so that each row overwrites what the row above wrote past its end.
        number = ir.Constant(count.type, k)
        pointer = pointer_to(context, builder, rows_type, rows, to, F32)
        pointer = builder.select(builder.icmp_signed("<", number, count), pointer, aside)
        builder.store(row, builder.bitcast(pointer, eight.as_pointer())).align = 4
        to = builder.add(to, pitch)


def _permute512(builder: Any, table: Any, index: Any) -> Any:
    kind = ir.FunctionType(F32V, [F32V, I32V])
    function = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
    return builder.call(function, [table, index])


def _permute_scalar(builder: Any, pointer: Any, index: Any) -> Any:
    masked = builder.and_(index, ir.Constant(I32V, [LANES - 1] * LANES))
    return _gathered(builder, pointer, masked, F32V)


def _gathered(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    result = ir.Constant(kind, ir.Undefined)
    for lane in range(LANES):
        place = builder.extract_element(index, ir.Constant(I32, lane))
        value = builder.load(builder.gep(pointer, [place]))
        result = builder.insert_element(result, value, ir.Constant(I32, lane))
    return result
