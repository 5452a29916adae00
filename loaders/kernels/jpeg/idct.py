"""The inverse cosine transform of a block of 8 x 8 coefficients, bit for bit like libjpeg-turbo's `islow`.

Source: ITU-T T.81, annex A.3.3; Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT algorithms with 11
multiplications" (ICASSP 1989). Constants have 13 fractional bits. The first pass, along columns, leaves two
extra bits, which the second removes; both round to nearest. Values between the passes saturate at 16 bits,
and the sum of two of them wraps, as in libjpeg-turbo; only damaged files reach that range.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types

from loaders.kernels.memory import operation

HAS_AVX2 = bool(binding.get_host_cpu_features().get("avx2"))
_POINT_BITS, _EXTRA_BITS = 13, 2
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_BYTES, _SHORTS, _PAIRS = ir.VectorType(ir.IntType(8), 16), ir.VectorType(_I16, 8), ir.VectorType(_I16, 16)
_INTS, _QUADS = ir.VectorType(_I32, 8), ir.VectorType(_I32, 4)


def _fixed(value: float) -> int:
    return round(value * (1 << _POINT_BITS))


# Sums of cosines of multiples of pi / 16, as the paper combines them.
_C541, _C765, _C1847 = _fixed(0.541196100), _fixed(0.765366865), _fixed(1.847759065)
_C1175, _C1961, _C390 = _fixed(1.175875602), _fixed(1.961570560), _fixed(0.390180644)
_C899, _C298, _C1501 = _fixed(0.899976223), _fixed(0.298631336), _fixed(1.501321110)
_C2562, _C2053, _C3072 = _fixed(2.562915447), _fixed(2.053119869), _fixed(3.072711026)


def _lanes(order: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_I32, len(order)), order)


def _paired(builder: Any, x: Any, y: Any) -> Any:
    """Return one vector x0 y0 x1 y1 ... from two vectors of eight int16."""
    return builder.shuffle_vector(x, y, _lanes([i + 8 * half for i in range(8) for half in range(2)]))


def _weighted(builder: Any, pairs: Any, first: int, second: int) -> Any:
    """Return x * first + y * second for each pair x y, as eight int32."""
    weights = ir.Constant(_PAIRS, [first, second] * 8)
    if HAS_AVX2:
        kind = ir.FunctionType(_INTS, [_PAIRS, _PAIRS])
        return builder.call(
            builder.module.declare_intrinsic("llvm.x86.avx2.pmadd.wd", fnty=kind), [pairs, weights]
        )
    wide = ir.VectorType(_I32, 16)
    products = builder.mul(builder.sext(pairs, wide), builder.sext(weights, wide))
    even, odd = (
        builder.shuffle_vector(products, products, _lanes(list(range(half, 16, 2)))) for half in range(2)
    )
    return builder.add(even, odd)


def _saturated(builder: Any, value: Any, low: int, high: int) -> Any:
    low, high = (ir.Constant(value.type, [bound] * value.type.count) for bound in (low, high))
    value = builder.select(builder.icmp_signed(">", value, low), value, low)
    return builder.select(builder.icmp_signed("<", value, high), value, high)


def _one_pass(builder: Any, rows: list[Any], shift: int) -> list[Any]:
    """Apply a 1-D inverse DCT across eight int16 vectors, lane by lane; round off `shift` bits, saturate."""
    middle = _paired(builder, rows[2], rows[6])
    point, half = ir.Constant(_INTS, [_POINT_BITS] * 8), ir.Constant(_INTS, [1 << (shift - 1)] * 8)
    ends = builder.add(rows[0], rows[4]), builder.sub(rows[0], rows[4])
    total, difference = (builder.add(builder.shl(builder.sext(end, _INTS), point), half) for end in ends)
    wide = _weighted(builder, middle, _C541 + _C765, _C541)
    narrow = _weighted(builder, middle, _C541, _C541 - _C1847)
    even = [
        builder.add(total, wide),
        builder.add(difference, narrow),
        builder.sub(difference, narrow),
        builder.sub(total, wide),
    ]
    shared = _paired(builder, builder.add(rows[7], rows[3]), builder.add(rows[5], rows[1]))
    a = _weighted(builder, shared, _C1175 - _C1961, _C1175)
    b = _weighted(builder, shared, _C1175, _C1175 - _C390)
    outer, inner = _paired(builder, rows[7], rows[1]), _paired(builder, rows[5], rows[3])
    odd = [
        builder.add(_weighted(builder, outer, -_C899, _C1501 - _C899), b),
        builder.add(_weighted(builder, inner, -_C2562, _C3072 - _C2562), a),
        builder.add(_weighted(builder, inner, _C2053 - _C2562, -_C2562), b),
        builder.add(_weighted(builder, outer, _C298 - _C899, -_C899), a),
    ]
    amount = ir.Constant(_INTS, [shift] * 8)
    sums = [builder.add(x, y) for x, y in zip(even, odd, strict=True)]
    sums += [builder.sub(x, y) for x, y in zip(even[::-1], odd[::-1], strict=True)]
    shifted = (builder.ashr(value, amount) for value in sums)
    return [builder.trunc(_saturated(builder, value, -32768, 32767), _SHORTS) for value in shifted]


def _unpacked(builder: Any, x: Any, y: Any, kind: Any, upper: int) -> Any:
    """Interleave the lower (or `upper`) half of x with the same half of y, both read as vectors of `kind`."""
    x, y = builder.bitcast(x, kind), builder.bitcast(y, kind)
    first = kind.count // 2 if upper else 0
    order = [first + i + kind.count * side for i in range(kind.count // 2) for side in range(2)]
    return builder.shuffle_vector(x, y, _lanes(order))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of eight rows of eight int16."""
    halves = range(2)
    singles = [_unpacked(builder, rows[i], rows[i + 1], _SHORTS, h) for i in (0, 2, 4, 6) for h in halves]
    doubles = [
        _unpacked(builder, singles[q + h], singles[q + 2 + h], _QUADS, g)
        for q in (0, 4)
        for h in halves
        for g in halves
    ]
    wide = ir.VectorType(_I64, 2)
    columns = [_unpacked(builder, doubles[i], doubles[i + 4], wide, h) for i in range(4) for h in halves]
    return [builder.bitcast(column, _SHORTS) for column in columns]


def _rows_of_bytes(builder: Any, columns: list[Any]) -> list[Any]:
    """Turn eight columns of int16 into rows of bytes, saturated and raised by 128, two rows per vector."""
    both = _lanes(list(range(16)))
    packed = []
    for i in range(4):
        pair = builder.shuffle_vector(columns[i], columns[i + 4], both)
        packed.append(builder.trunc(_saturated(builder, pair, -128, 127), _BYTES))
    pairs = [
        _unpacked(builder, packed[i], packed[i + 1], _BYTES, upper) for i in (0, 2) for upper in range(2)
    ]
    near, far = ([_unpacked(builder, pairs[k], pairs[k + 2], _SHORTS, u) for u in range(2)] for k in range(2))
    rows = [_unpacked(builder, near[h], far[h], _QUADS, u) for h in range(2) for u in range(2)]
    middle = ir.Constant(_BYTES, [-128] * 16)
    return [builder.xor(builder.bitcast(row, _BYTES), middle) for row in rows]


@operation(types.void, None, None, types.int64, None, types.int64, types.int64)
def transform_block(context, builder, kinds, coefficients, factors, at, out, to, stride):
    """Write the 8 x 8 samples of a block to out[to + y * stride + x], uint8; no bounds check.

    Args:
        context, builder, kinds: see `operation`.
        coefficients: int16 [>= 64], quantised, row-major.
        factors: int16, the 64 quantisation steps from index `at` on, row-major.
        stride: bytes from one row of `out` to the next.
    """
    arrays = (kinds[0], coefficients), (kinds[1], factors), (kinds[3], out)
    data = [context.make_array(kind)(context, builder, array).data for kind, array in arrays]
    steps = builder.gep(data[1], [at])
    rows = []
    for i in range(8):
        found = []
        for pointer in (data[0], steps):
            place = builder.gep(pointer, [ir.Constant(_I32, 8 * i)])
            found.append(builder.load(builder.bitcast(place, _SHORTS.as_pointer())))
            found[-1].align = 2
        rows.append(builder.mul(*found))
    rows = _transposed(builder, _one_pass(builder, rows, _POINT_BITS - _EXTRA_BITS))
    columns = _one_pass(builder, rows, _POINT_BITS + _EXTRA_BITS + 3)
    place = builder.gep(data[2], [to])
    for pair in _rows_of_bytes(builder, columns):
        both = builder.bitcast(pair, ir.VectorType(_I64, 2))
        for half in range(2):
            row = builder.extract_element(both, ir.Constant(_I32, half))
            builder.store(row, builder.bitcast(place, _I64.as_pointer())).align = 1
            place = builder.gep(place, [stride])
