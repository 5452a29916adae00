"""Operations on 16-lane vectors for numba kernels.

LLVM vectorises plain loops well, but not table look-ups, and the checks that it puts before a vectorised loop
take half the time of loops over the rows of a 96-pixel view. These intrinsics name the vector operations
directly. Sixteen float32 lanes fill one AVX-512 register; for processors with shorter registers LLVM splits
the vectors, so the code runs everywhere.

An index counts elements from the start of an array, of any shape, and is not checked. Vectors may reach past
the elements that are used, so callers leave `LANES` elements of slack at the end.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import models, register_model

from loaders.kernels.memory import operation

LANES = 16

F32 = ir.FloatType()
I32 = ir.IntType(32)
F32V = ir.VectorType(F32, LANES)
I32V = ir.VectorType(I32, LANES)
_HOST = binding.get_host_cpu_features()
HAS_AVX512 = bool(_HOST.get("avx512f"))
HAS_SSSE3 = bool(_HOST.get("ssse3"))


class _Vector(types.Type):
    """Numba type of a vector value, which lives in registers."""


FLOATS = _Vector("float32x16")
INTS = _Vector("int32x16")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Vector) -> None:
        super().__init__(dmm, fe_type, F32V if fe_type is FLOATS or fe_type.name == "float32x16" else I32V)


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, at: Any, element: Any) -> Any:
    """Return a pointer to element `at` of an array whose elements are read as LLVM type `element`."""
    data = context.make_array(array_type)(context, builder, array).data
    base = builder.bitcast(data, element.as_pointer())
    return builder.gep(base, [at])


def load_vector(builder: Any, pointer: Any, vector: Any, align: int) -> Any:
    """Return the vector of LLVM type `vector` at a pointer that is aligned to `align` bytes."""
    value = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    value.align = align
    return value


def _constant(value: float) -> ir.Constant:
    return ir.Constant(F32V, [value] * LANES)


@operation(FLOATS)
def zeros(context, builder, kinds):
    """Return a vector of zeros."""
    return _constant(0.0)


@operation(FLOATS, None)
def splat(context, builder, kinds, value):
    """Return float32 `value` in every lane."""
    scalar = context.cast(builder, value, kinds[0], types.float32)
    return _splat(builder, scalar, F32V)


@operation(FLOATS, types.float32, types.float32)
def splat_pair(context, builder, kinds, first, second):
    """Return float32 `first` in the lower half of the lanes and `second` in the upper half."""
    half = ir.VectorType(F32, LANES // 2)
    both = ir.Constant(I32V, list(range(LANES)))
    return builder.shuffle_vector(_splat(builder, first, half), _splat(builder, second, half), both)


@operation(FLOATS, None, types.intp)
def load(context, builder, kinds, array, at):
    """Return array[at : at + LANES] of a contiguous float32 array."""
    pointer = pointer_to(context, builder, kinds[0], array, at, F32)
    return load_vector(builder, pointer, F32V, 4)


@operation(INTS, None, types.intp)
def load_ints(context, builder, kinds, array, at):
    """Return array[at : at + LANES] of a contiguous int32 array."""
    pointer = pointer_to(context, builder, kinds[0], array, at, I32)
    return load_vector(builder, pointer, I32V, 4)


@operation(FLOATS, None, types.intp)
def load_bytes(context, builder, kinds, array, at):
    """Return array[at : at + LANES] of a contiguous uint8 array as float32."""
    byte = ir.IntType(8)
    pointer = pointer_to(context, builder, kinds[0], array, at, byte)
    raw = load_vector(builder, pointer, ir.VectorType(byte, LANES), 1)
    return builder.sitofp(builder.zext(raw, I32V), F32V)


@operation(types.void, None, types.intp, FLOATS)
def store(context, builder, kinds, array, at, value):
    """Write a vector to array[at : at + LANES] of a contiguous float32 array."""
    pointer = pointer_to(context, builder, kinds[0], array, at, F32)
    instruction = builder.store(value, builder.bitcast(pointer, F32V.as_pointer()))
    instruction.align = 4


def _to_element(builder: Any, value: Any, element: Any) -> Any:
    """Convert float32 lanes to the elements of an array; int16 arrays hold float16, uint16 ones bfloat16."""
    lanes = value.type.count
    if element == types.uint8:  # truncates
        ints = builder.fptosi(value, ir.VectorType(I32, lanes))
        return builder.trunc(ints, ir.VectorType(ir.IntType(8), lanes))
    if element == types.int16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, ir.VectorType(ir.IntType(16), lanes))
    if element == types.uint16:  # round to nearest, ties to even, and keep the upper half
        kind = ir.VectorType(I32, lanes)
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
    """Store all lanes at array[at :], whose address must be a multiple of the size of LANES elements."""
    vector = _to_element(builder, value, array_type.dtype)
    pointer = pointer_to(context, builder, array_type, array, at, vector.type.element)
    instruction = builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()))
    instruction.align = min(64, LANES * array_type.dtype.bitwidth // 8)
    if past_caches:
        one = builder.module.add_metadata([ir.Constant(I32, 1)])
        instruction.set_metadata("nontemporal", one)


def _write_some(
    context: Any, builder: Any, array_type: Any, array: Any, at: Any, value: Any, count: Any
) -> None:
    """Store the first `count` lanes, at most all, at array[at :], which needs no alignment."""
    vector = _to_element(builder, value, array_type.dtype)
    pointer = pointer_to(context, builder, array_type, array, at, vector.type.element)
    pointer = builder.bitcast(pointer, vector.type.as_pointer())
    # The lanes go by way of the stack, since LLVM takes minutes to compile a masked store of so many.
    with builder.goto_entry_block():
        held = builder.alloca(vector.type)
    builder.store(vector, held)
    lanes = ir.Constant(count.type, vector.type.count)
    used = builder.select(builder.icmp_signed("<", count, lanes), count, lanes)
    num_bytes = builder.mul(used, ir.Constant(count.type, array_type.dtype.bitwidth // 8))
    byte = ir.IntType(8).as_pointer()
    copy = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, count.type])
    builder.call(copy, [builder.bitcast(p, byte) for p in (pointer, held)] + [num_bytes, ir.IntType(1)(0)])


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    lanes = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


@operation(types.void, None, types.intp, FLOATS)
def stream(context, builder, kinds, array, at, value):
    """Write a vector to array[at : at + LANES], bypassing the caches.

    Elements are float32, float16 (as int16), bfloat16 (as uint16) or uint8. The address must be a multiple
    of the size of LANES elements.
    """
    _write(context, builder, kinds[0], array, at, value, past_caches=True)


@operation(types.void, None, types.intp, FLOATS)
def put(context, builder, kinds, array, at, value):
    """Write a vector as `stream` does, but through the caches."""
    _write(context, builder, kinds[0], array, at, value, past_caches=False)


@operation(types.void, None, types.intp, FLOATS, types.intp)
def store_some(context, builder, kinds, array, at, value, count):
    """Write the first `count` lanes, at most LANES, to array[at :], at any address; types as in `stream`."""
    _write_some(context, builder, kinds[0], array, at, value, count)


def _interleave(builder: Any, r: Any, g: Any, b: Any) -> Any:
    """Return one vector r0 g0 b0 r1 g1 b1 ... from three."""
    pair = builder.shuffle_vector(r, g, ir.Constant(ir.VectorType(I32, 2 * LANES), list(range(2 * LANES))))
    fill = list(range(LANES)) + [0] * LANES
    wide = builder.shuffle_vector(b, b, ir.Constant(ir.VectorType(I32, 2 * LANES), fill))
    order = [lane + channel * LANES for lane in range(LANES) for channel in range(3)]
    return builder.shuffle_vector(pair, wide, ir.Constant(ir.VectorType(I32, 3 * LANES), order))


@operation(types.void, None, types.intp, FLOATS, FLOATS, FLOATS)
def stream_pixels(context, builder, kinds, array, at, r, g, b):
    """Write LANES interleaved RGB pixels to array[at :], bypassing the caches; see `stream`."""
    value = _interleave(builder, r, g, b)
    _write(context, builder, kinds[0], array, at, value, past_caches=True)


@operation(types.void, None, types.intp, FLOATS, FLOATS, FLOATS)
def put_pixels(context, builder, kinds, array, at, r, g, b):
    """Write LANES pixels as `stream_pixels` does, but through the caches."""
    value = _interleave(builder, r, g, b)
    _write(context, builder, kinds[0], array, at, value, past_caches=False)


@operation(types.void, None, types.intp, FLOATS, FLOATS, FLOATS, types.intp)
def store_some_pixels(context, builder, kinds, array, at, r, g, b, count):
    """Write the first `count` RGB pixels, interleaved, to array[at :]; see `store_some`."""
    value = _interleave(builder, r, g, b)
    elements = builder.mul(count, ir.Constant(count.type, 3))
    _write_some(context, builder, kinds[0], array, at, value, elements)


@operation(FLOATS, FLOATS, FLOATS)
def add(context, builder, kinds, a, b):
    """Return a + b."""
    return builder.fadd(a, b)


@operation(FLOATS, FLOATS, FLOATS, FLOATS)
def multiply_add(context, builder, kinds, a, b, c):
    """Return a * b + c, as a fused multiply-add where the processor has one."""
    product = builder.fmul(a, b, flags=("contract",))
    return builder.fadd(product, c, flags=("contract",))


@operation(FLOATS, FLOATS)
def clamp_byte(context, builder, kinds, value):
    """Return value clamped to [0, 255]."""
    low, high = _constant(0.0), _constant(255.0)
    above = builder.select(builder.fcmp_ordered(">", value, low), value, low)
    return builder.select(builder.fcmp_ordered("<", above, high), above, high)


def choose(builder: Any, comparison: str, a: Any, b: Any) -> Any:
    """Return `a` where `a comparison b` holds, such as a < b, else `b`."""
    return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


def _reduce(builder: Any, comparison: str, value: Any) -> Any:
    lanes = [builder.extract_element(value, ir.Constant(I32, lane)) for lane in range(LANES)]
    return reduce(lambda a, b: choose(builder, comparison, a, b), lanes)


@operation(FLOATS, FLOATS, FLOATS)
def smaller(context, builder, kinds, a, b):
    """Return the smaller of a and b per lane."""
    return choose(builder, "<", a, b)


@operation(FLOATS, FLOATS, FLOATS)
def larger(context, builder, kinds, a, b):
    """Return the larger of a and b per lane."""
    return choose(builder, ">", a, b)


@operation(types.float32, FLOATS)
def lowest(context, builder, kinds, value):
    """Return the smallest lane."""
    return _reduce(builder, "<", value)


@operation(types.float32, FLOATS)
def highest(context, builder, kinds, value):
    """Return the largest lane."""
    return _reduce(builder, ">", value)
