"""A small vocabulary of 16-lane vectors for numba kernels.

LLVM vectorises straight loops well, but not table look-ups, and per-row loops of a 96-pixel view lose half
their time in its guards. These intrinsics name the vector operations directly. Sixteen lanes are one AVX-512
register; on narrower machines LLVM splits them, so the code runs everywhere.

Arrays are indexed from their first element without any check: callers leave `LANES` elements of slack.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_F32V = ir.VectorType(_F32, LANES)
_I32V = ir.VectorType(_I32, LANES)
_HOST = binding.get_host_cpu_features()
_HAS_AVX512 = bool(_HOST.get("avx512f"))
_HAS_AVX2 = bool(_HOST.get("avx2"))


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
        one = builder.insert_element(ir.Constant(_F32V, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return builder.shuffle_vector(one, ir.Constant(_F32V, ir.Undefined), ir.Constant(_I32V, [0] * LANES))

    return _floats(value), generate


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
def store(typing_context, array, at, value):
    """Write a vector to array[at : at + LANES] of a contiguous float32 array."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        instruction = builder.store(args[2], builder.bitcast(pointer, _F32V.as_pointer()))
        instruction.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), generate


@intrinsic
def stream(typing_context, array, at, value):
    """Write a vector past the caches to array[at : at + LANES], float32 or uint8 (truncated).

    A batch is read long after it was written: a plain store would first fetch the line from memory, and then
    push something useful out of the cache. The address must be a multiple of the vector's size in bytes.
    """

    def generate(context, builder, signature, args):
        value = args[2]
        if signature.args[0].dtype == types.uint8:
            value = builder.trunc(builder.fptosi(value, _I32V), ir.VectorType(ir.IntType(8), LANES))
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], value.type.element)
        instruction = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
        instruction.align = LANES * signature.args[0].dtype.bitwidth // 8
        one = builder.module.add_metadata([ir.Constant(_I32, 1)])
        instruction.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), generate


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


@intrinsic
def lookup(typing_context, array, at, index):
    """Return array[at + (index[lane] & 15)] per lane of a contiguous float32 array.

    One load and one permute with AVX-512, two of each per half with AVX2, sixteen scalar loads elsewhere.
    """

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        if _HAS_AVX512:
            return _permute512(builder, _load_vector(builder, pointer, _F32V, 4), args[2])
        if _HAS_AVX2:
            return _permute256(builder, pointer, args[2])
        return _permute_scalar(builder, pointer, args[2])

    return _floats(array, types.intp, _ints), generate


@intrinsic
def pick_from(typing_context, window, index, inside, outside):
    """Return `inside` in the lanes whose index // 16 equals `window`, `outside` in the others."""

    def generate(context, builder, signature, args):
        window = builder.trunc(args[0], _I32) if args[0].type.width > 32 else args[0]
        one = builder.insert_element(ir.Constant(_I32V, ir.Undefined), window, ir.Constant(_I32, 0))
        wanted = builder.shuffle_vector(
            one, ir.Constant(_I32V, ir.Undefined), ir.Constant(_I32V, [0] * LANES)
        )
        number = builder.lshr(args[1], ir.Constant(_I32V, [4] * LANES))
        return builder.select(builder.icmp_signed("==", number, wanted), args[2], args[3])

    return _floats(types.intp, _ints, _floats, _floats), generate


def _permute512(builder: Any, table: Any, index: Any) -> Any:
    kind = ir.FunctionType(_F32V, [_F32V, _I32V])
    function = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
    return builder.call(function, [table, index])


def _permute256(builder: Any, pointer: Any, index: Any) -> Any:
    half_f, half_i = ir.VectorType(_F32, 8), ir.VectorType(_I32, 8)
    kind = ir.FunctionType(half_f, [half_f, half_i])
    function = builder.module.declare_intrinsic("llvm.x86.avx2.permps", fnty=kind)
    low = _load_vector(builder, pointer, half_f, 4)
    high = _load_vector(builder, builder.gep(pointer, [ir.Constant(_I32, 8)]), half_f, 4)
    halves = []
    for first in (0, 8):
        lanes = ir.Constant(ir.VectorType(_I32, 8), list(range(first, first + 8)))
        part = builder.shuffle_vector(index, ir.Constant(_I32V, ir.Undefined), lanes)
        bit = builder.and_(part, ir.Constant(half_i, [8] * 8))
        is_high = builder.icmp_signed("!=", bit, ir.Constant(half_i, [0] * 8))
        picked = builder.select(
            is_high, builder.call(function, [high, part]), builder.call(function, [low, part])
        )
        halves.append(picked)
    both = ir.Constant(_I32V, list(range(LANES)))
    return builder.shuffle_vector(halves[0], halves[1], both)


def _permute_scalar(builder: Any, pointer: Any, index: Any) -> Any:
    masked = builder.and_(index, ir.Constant(_I32V, [LANES - 1] * LANES))
    result = ir.Constant(_F32V, ir.Undefined)
    for lane in range(LANES):
        place = builder.extract_element(masked, ir.Constant(_I32, lane))
        value = builder.load(builder.gep(pointer, [place]))
        result = builder.insert_element(result, value, ir.Constant(_I32, lane))
    return result
