"""A small vocabulary of 16-lane vectors for numba kernels.

LLVM vectorises straight loops well, but not table look-ups, and per-row loops of a 96-pixel view lose half
their time in its guards. These intrinsics name the vector operations directly. Sixteen lanes are one AVX-512
register; on narrower machines LLVM splits them, so the code runs everywhere.

Arrays are indexed from their first element without any check: callers leave `LANES` elements of slack.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_F32V = ir.VectorType(_F32, LANES)
_I32V = ir.VectorType(_I32, LANES)
_HOST = binding.get_host_cpu_features()
HAS_AVX512 = bool(_HOST.get("avx512f"))
_HAS_SSSE3 = bool(_HOST.get("ssse3"))


class _Vector(types.Type):
    """Numba type of a vector value; it lives in registers."""


_floats = _Vector("float32x16")
_ints = _Vector("int32x16")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Vector) -> None:
        super().__init__(dmm, fe_type, _F32V if fe_type is _floats or fe_type.name == "float32x16" else _I32V)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, element: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    base = builder.bitcast(data, element.as_pointer())
    return builder.gep(base, [at])


def _load_vector(builder: Any, pointer: Any, vector: Any, align: int) -> Any:
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = align
    return value


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_F32V, [value] * LANES)


@intrinsic
def zeros(typing_context):
    """Return a vector of zeros."""

    def generate(context, builder, signature, args):
        return _constant(0.0)

    return _floats(), generate


@intrinsic
def splat(typing_context, value):
    """Return float32 `value` in every lane."""

    def generate(context, builder, signature, args):
        scalar = context.cast(builder, args[0], signature.args[0], types.float32)
        return _splat(builder, scalar, _F32V)

    return _floats(value), generate


@intrinsic
def splat_pair(typing_context, first, second):
    """Return float32 `first` in the lower half of the lanes and `second` in the upper."""

    def generate(context, builder, signature, args):
        half = ir.VectorType(_F32, LANES // 2)
        both = ir.Constant(_I32V, list(range(LANES)))
        return builder.shuffle_vector(_splat(builder, args[0], half), _splat(builder, args[1], half), both)

    return _floats(types.float32, types.float32), generate


@intrinsic
def load(typing_context, array, at):
    """Return array[at : at + LANES] of a contiguous float32 array."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        return _load_vector(builder, pointer, _F32V, 4)

    return _floats(array, types.intp), generate


@intrinsic
def load_ints(typing_context, array, at):
    """Return array[at : at + LANES] of a contiguous int32 array."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _I32)
        return _load_vector(builder, pointer, _I32V, 4)

    return _ints(array, types.intp), generate


@intrinsic
def load_bytes(typing_context, array, at):
    """Return array[at : at + LANES] of a contiguous uint8 array as float32."""

    def generate(context, builder, signature, args):
        byte = ir.IntType(8)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], byte)
        raw = _load_vector(builder, pointer, ir.VectorType(byte, LANES), 1)
        return builder.sitofp(builder.zext(raw, _I32V), _F32V)

    return _floats(array, types.intp), generate


@intrinsic
def lookup_bytes(typing_context, array, at, order, place):
    """Return array[at + order[place + lane]] as float32 per lane; both hold uint8, and orders are below 16.

    A load and a permute with SSSE3; elsewhere sixteen scalar loads.
    """

    def generate(context, builder, signature, args):
        byte, bytes16 = ir.IntType(8), ir.VectorType(ir.IntType(8), LANES)
        table = _pointer(context, builder, signature.args[0], args[0], args[1], byte)
        index = _pointer(context, builder, signature.args[2], args[2], args[3], byte)
        index = _load_vector(builder, index, bytes16, 1)
        if _HAS_SSSE3:
            kind = ir.FunctionType(bytes16, [bytes16, bytes16])
            permute = builder.module.declare_intrinsic("llvm.x86.ssse3.pshuf.b.128", fnty=kind)
            raw = builder.call(permute, [_load_vector(builder, table, bytes16, 1), index])
        else:
            raw = _gathered(builder, table, builder.zext(index, _I32V), bytes16)
        return builder.sitofp(builder.zext(raw, _I32V), _F32V)

    return _floats(array, types.intp, order, types.intp), generate


@intrinsic
def reverse(typing_context, value):
    """Return the lanes of a vector from last to first."""

    def generate(context, builder, signature, args):
        order = ir.Constant(_I32V, list(range(LANES - 1, -1, -1)))
        return builder.shuffle_vector(args[0], args[0], order)

    return _floats(_floats), generate


@intrinsic
def store(typing_context, array, at, value):
    """Write a vector to array[at : at + LANES] of a contiguous float32 array."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        instruction = builder.store(args[2], builder.bitcast(pointer, _F32V.as_pointer()))
        instruction.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), generate


def _to_element(builder: Any, value: Any, element: Any) -> Any:
    """Convert float32 lanes to what an array holds; int16 arrays hold float16, uint16 arrays bfloat16."""
    lanes = value.type.count
    if element == types.uint8:  # truncates
        ints = builder.fptosi(value, ir.VectorType(_I32, lanes))
        return builder.trunc(ints, ir.VectorType(ir.IntType(8), lanes))
    if element == types.int16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, ir.VectorType(ir.IntType(16), lanes))
    if element == types.uint16:  # round to nearest, ties to even, and keep the upper half
        kind = ir.VectorType(_I32, lanes)
        bits = builder.bitcast(value, kind)
        upper = builder.lshr(bits, ir.Constant(kind, [16] * lanes))
        odd = builder.and_(upper, ir.Constant(kind, [1] * lanes))
        rounded = builder.add(builder.add(bits, odd), ir.Constant(kind, [0x7FFF] * lanes))
        short = builder.lshr(rounded, ir.Constant(kind, [16] * lanes))
        return builder.trunc(short, ir.VectorType(ir.IntType(16), lanes))
    return value


def _write(
    context: Any, builder: Any, array_type: Any, array: Any, at: Any, value: Any, past_caches: bool
) -> None:
    """Store all lanes at an address that is a multiple of LANES elements."""
    vector = _to_element(builder, value, array_type.dtype)
    pointer = _pointer(context, builder, array_type, array, at, vector.type.element)
    instruction = builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()))
    instruction.align = min(64, LANES * array_type.dtype.bitwidth // 8)
    if past_caches:
        one = builder.module.add_metadata([ir.Constant(_I32, 1)])
        instruction.set_metadata("nontemporal", one)


def _write_some(
    context: Any, builder: Any, array_type: Any, array: Any, at: Any, value: Any, count: Any
) -> None:
    """Store the first `count` lanes anywhere."""
    vector = _to_element(builder, value, array_type.dtype)
    pointer = _pointer(context, builder, array_type, array, at, vector.type.element)
    pointer = builder.bitcast(pointer, vector.type.as_pointer())
    # By way of the stack: a masked store of so many lanes takes LLVM minutes to compile.
    held = cgutils.alloca_once(builder, vector.type)
    builder.store(vector, held)
    lanes = ir.Constant(count.type, vector.type.count)
    used = builder.select(builder.icmp_signed("<", count, lanes), count, lanes)
    cgutils.raw_memcpy(builder, pointer, held, used, array_type.dtype.bitwidth // 8)


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


@intrinsic
def stream(typing_context, array, at, value):
    """Write a vector past the caches to array[at : at + LANES] of float32, int16, uint16 or uint8.

    The address must be a multiple of LANES elements.
    """

    def generate(context, builder, signature, args):
        _write(context, builder, signature.args[0], *args, past_caches=True)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), generate


@intrinsic
def put(typing_context, array, at, value):
    """Write a vector as `stream` does, but through the caches."""

    def generate(context, builder, signature, args):
        _write(context, builder, signature.args[0], *args, past_caches=False)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), generate


@intrinsic
def store_some(typing_context, array, at, value, count):
    """Write the first `count` lanes, or all where there are fewer, to any place of an array as `stream`'s."""

    def generate(context, builder, signature, args):
        _write_some(context, builder, signature.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats, types.intp), generate


def _interleave(builder: Any, r: Any, g: Any, b: Any) -> Any:
    """Return r0 g0 b0 r1 g1 b1 ... of three vectors."""
    pair = builder.shuffle_vector(r, g, ir.Constant(ir.VectorType(_I32, 2 * LANES), list(range(2 * LANES))))
    fill = list(range(LANES)) + [0] * LANES
    wide = builder.shuffle_vector(b, b, ir.Constant(ir.VectorType(_I32, 2 * LANES), fill))
    order = [lane + channel * LANES for lane in range(LANES) for channel in range(3)]
    return builder.shuffle_vector(pair, wide, ir.Constant(ir.VectorType(_I32, 3 * LANES), order))


@intrinsic
def stream_pixels(typing_context, array, at, r, g, b):
    """Write LANES pixels of three channels past the caches, interleaved, to array[at :]; see `stream`."""

    def generate(context, builder, signature, args):
        value = _interleave(builder, *args[2:])
        _write(context, builder, signature.args[0], args[0], args[1], value, past_caches=True)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats, _floats, _floats), generate


@intrinsic
def put_pixels(typing_context, array, at, r, g, b):
    """Write LANES pixels as `stream_pixels` does, but through the caches."""

    def generate(context, builder, signature, args):
        value = _interleave(builder, *args[2:])
        _write(context, builder, signature.args[0], args[0], args[1], value, past_caches=False)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats, _floats, _floats), generate


@intrinsic
def store_some_pixels(typing_context, array, at, r, g, b, count):
    """Write the first `count` pixels of three channels, interleaved, to array[at :]."""

    def generate(context, builder, signature, args):
        value = _interleave(builder, *args[2:5])
        elements = builder.mul(args[5], ir.Constant(args[5].type, 3))
        _write_some(context, builder, signature.args[0], args[0], args[1], value, elements)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats, _floats, _floats, types.intp), generate


@intrinsic
def add(typing_context, a, b):
    """Return a + b."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args)

    return _floats(_floats, _floats), generate


@intrinsic
def multiply_add(typing_context, a, b, c):
    """Return a * b + c, fused where the machine can."""

    def generate(context, builder, signature, args):
        product = builder.fmul(args[0], args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return _floats(_floats, _floats, _floats), generate


@intrinsic
def clamp_byte(typing_context, value):
    """Return value clamped to [0, 255]."""

    def generate(context, builder, signature, args):
        low, high = _constant(0.0), _constant(255.0)
        above = builder.select(builder.fcmp_ordered(">", args[0], low), args[0], low)
        return builder.select(builder.fcmp_ordered("<", above, high), above, high)

    return _floats(_floats), generate


def _choose(builder: Any, comparison: str, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


def _reduce(builder: Any, comparison: str, value: Any) -> Any:
    lanes = [builder.extract_element(value, ir.Constant(_I32, lane)) for lane in range(LANES)]
    return reduce(lambda a, b: _choose(builder, comparison, a, b), lanes)


@intrinsic
def smaller(typing_context, a, b):
    """Return the smaller of a and b per lane."""

    def generate(context, builder, signature, args):
        return _choose(builder, "<", *args)

    return _floats(_floats, _floats), generate


@intrinsic
def larger(typing_context, a, b):
    """Return the larger of a and b per lane."""

    def generate(context, builder, signature, args):
        return _choose(builder, ">", *args)

    return _floats(_floats, _floats), generate


@intrinsic
def lowest(typing_context, value):
    """Return the smallest lane."""

    def generate(context, builder, signature, args):
        return _reduce(builder, "<", args[0])

    return types.float32(_floats), generate


@intrinsic
def highest(typing_context, value):
    """Return the largest lane."""

    def generate(context, builder, signature, args):
        return _reduce(builder, ">", args[0])

    return types.float32(_floats), generate


@intrinsic
def lookup(typing_context, array, at, index):
    """Return array[at + (index[lane] & 15)] per lane of a contiguous float32 array.

    One load and one permute with AVX-512; elsewhere sixteen scalar loads, which nothing but tests waits for.
    """

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        if HAS_AVX512:
            return _permute512(builder, _load_vector(builder, pointer, _F32V, 4), args[2])
        return _permute_scalar(builder, pointer, args[2])

    return _floats(array, types.intp, _ints), generate


@intrinsic
def lookup_wide(typing_context, array, at, index):
    """Return array[at + (index[lane] & 31)] per lane of a contiguous float32 array.

    Two loads and one permute with AVX-512; twice `lookup` elsewhere.
    """

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        behind = builder.gep(pointer, [ir.Constant(_I32, LANES)])
        if HAS_AVX512:
            near, far = (_load_vector(builder, place, _F32V, 4) for place in (pointer, behind))
            kind = ir.FunctionType(_F32V, [_F32V, _I32V, _F32V])
            permute = builder.module.declare_intrinsic("llvm.x86.avx512.vpermi2var.ps.512", fnty=kind)
            return builder.call(permute, [near, args[2], far])
        bit = builder.and_(args[2], ir.Constant(_I32V, [LANES] * LANES))
        is_far = builder.icmp_signed("!=", bit, ir.Constant(_I32V, [0] * LANES))
        return builder.select(
            is_far, _permute_scalar(builder, behind, args[2]), _permute_scalar(builder, pointer, args[2])
        )

    return _floats(array, types.intp, _ints), generate


@intrinsic
def pick_from(typing_context, window, index, inside, outside):
    """Return `inside` in the lanes whose index // 32 equals `window`, `outside` in the others."""

    def generate(context, builder, signature, args):
        window = builder.trunc(args[0], _I32) if args[0].type.width > 32 else args[0]
        one = builder.insert_element(ir.Constant(_I32V, ir.Undefined), window, ir.Constant(_I32, 0))
        wanted = builder.shuffle_vector(
            one, ir.Constant(_I32V, ir.Undefined), ir.Constant(_I32V, [0] * LANES)
        )
        number = builder.lshr(args[1], ir.Constant(_I32V, [5] * LANES))
        return builder.select(builder.icmp_signed("==", number, wanted), args[2], args[3])

    return _floats(types.intp, _ints, _floats, _floats), generate


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Return the columns of eight rows of eight floats."""

    def mix(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, 8), order))

    # Neighbours within each half, then pairs of neighbours, then the halves: one instruction each.
    singles = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    doubles = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    halves = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    pairs = [mix(rows[i], rows[i + 1], order) for i in (0, 2, 4, 6) for order in singles]
    fours = [mix(pairs[i], pairs[i + 2], order) for i in (0, 1, 4, 5) for order in doubles]
    return [mix(fours[i], fours[i + 4], order) for order in halves for i in range(4)]


@intrinsic
def rows_to_columns(typing_context, rows, at, pitch, columns, to):
    """Copy eight values of eight rows, rows[at + k * pitch :], to columns[to + 8 * x + k], all float32."""

    def generate(context, builder, signature, args):
        rows, at, pitch, columns, to = args
        rows_type, columns_type = signature.args[0], signature.args[3]
        eight = ir.VectorType(_F32, 8)
        found = []
        for _ in range(8):
            pointer = _pointer(context, builder, rows_type, rows, at, _F32)
            found.append(_load_vector(builder, pointer, eight, 4))
            at = builder.add(at, pitch)
        for x, column in enumerate(_transposed(builder, found)):
            place = builder.add(to, ir.Constant(to.type, 8 * x))
            pointer = _pointer(context, builder, columns_type, columns, place, _F32)
            builder.store(column, builder.bitcast(pointer, eight.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, columns, types.intp), generate


@intrinsic
def columns_to_rows(typing_context, sums, at, rows, to, pitch, count):
    """Finish eight columns: sums[at + 16 * x :] holds two halves of eight values of column x.

    Their sums, clamped to [0, 255], go to rows[to + k * pitch + x] for k < `count`, eight per row however
    short it is. `sums` is overwritten.
    """

    def generate(context, builder, signature, args):
        sums, at, rows, to, pitch, count = args
        sums_type, rows_type = signature.args[0], signature.args[2]
        eight = ir.VectorType(_F32, 8)
        low, high = ir.Constant(eight, [0.0] * 8), ir.Constant(eight, [255.0] * 8)
        columns = []
        for x in range(8):
            halves = []
            for half in range(2):
                place = builder.add(at, ir.Constant(at.type, 16 * x + 8 * half))
                pointer = _pointer(context, builder, sums_type, sums, place, _F32)
                halves.append(_load_vector(builder, pointer, eight, 4))
            total = _choose(builder, ">", builder.fadd(*halves), low)
            columns.append(_choose(builder, "<", total, high))
        aside = _pointer(context, builder, sums_type, sums, at, _F32)
        for k, row in enumerate(_transposed(builder, columns)):
            # From above, so that what reaches over a short row is overwritten by the next one.
            number = ir.Constant(count.type, k)
            pointer = _pointer(context, builder, rows_type, rows, to, _F32)
            pointer = builder.select(builder.icmp_signed("<", number, count), pointer, aside)
            builder.store(row, builder.bitcast(pointer, eight.as_pointer())).align = 4
            to = builder.add(to, pitch)
        return context.get_dummy_value()

    return types.void(sums, types.intp, rows, types.intp, types.intp, types.intp), generate


def _permute512(builder: Any, table: Any, index: Any) -> Any:
    kind = ir.FunctionType(_F32V, [_F32V, _I32V])
    function = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
    return builder.call(function, [table, index])


def _permute_scalar(builder: Any, pointer: Any, index: Any) -> Any:
    masked = builder.and_(index, ir.Constant(_I32V, [LANES - 1] * LANES))
    return _gathered(builder, pointer, masked, _F32V)


def _gathered(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    result = ir.Constant(kind, ir.Undefined)
    for lane in range(LANES):
        place = builder.extract_element(index, ir.Constant(_I32, lane))
        value = builder.load(builder.gep(pointer, [place]))
        result = builder.insert_element(result, value, ir.Constant(_I32, lane))
    return result
