"""Loads of several bytes at once, and the few functions of the C library that kernels call."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from loaders.compiler import EntryCompiler, KernelCompiler, PartCompiler

# `_nrt` off: kernels allocate nothing, so that slices need no reference counting.
_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
kernel = njit(**_OPTIONS, cache=True, pipeline_class=KernelCompiler)

# For those that Python calls by way of `loaders.packs.stored`, which keeps them on disk. Parts are not kept:
# numba would not notice that another file, of which they are made, has changed.
entry = njit(**_OPTIONS, no_cpython_wrapper=True, pipeline_class=EntryCompiler)  # type: ignore[call-overload]

# For those that kernels alone call; a call from Python would end the process.
inner = njit(**_OPTIONS, no_cpython_wrapper=True, pipeline_class=PartCompiler)  # type: ignore[call-overload]

_I32, _I64 = ir.IntType(32), ir.IntType(64)

# Called by name, so that compiled code can be kept on disk. `open` takes no mode: nothing is created.
open_file = types.ExternalFunction("open", types.int32(types.uintp, types.int32))
read_file = types.ExternalFunction("read", types.intp(types.int32, types.uintp, types.uintp))
copy_bytes = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
close_file = types.ExternalFunction("close", types.int32(types.int32))


@intrinsic
def bytes_at(typing_context: Any, address: Any, size: Any) -> Any:
    """Return the `size` bytes at an address as a uint8 array, which owns nothing."""
    kind = types.Array(types.uint8, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        one, data = context.get_constant(types.intp, 1), builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        populate_array(array, data, [args[1]], [one], one, None)
        return array._getvalue()

    return kind(types.uintp, types.intp), generate


def _load(context: Any, builder: Any, array_type: Any, array: Any, at: Any, kind: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [at])
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


@intrinsic
def load_be64(typing_context: Any, array: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array from `at`, the first one highest, as uint64; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(_load(context, builder, signature.args[0], args[0], args[1], _I64))

    return types.uint64(array, types.int64), generate


@intrinsic
def load_le64(typing_context: Any, array: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array from `at`, the first one lowest, as uint64; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(context, builder, signature.args[0], args[0], args[1], _I64)

    return types.uint64(array, types.int64), generate


@intrinsic
def store_le64(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Write a uint64 as eight bytes of a uint8 array from `at`, the lowest first; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(data, [args[1]])
        builder.store(args[2], builder.bitcast(pointer, _I64.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate
