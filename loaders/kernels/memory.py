"""Memory for kernels: aligned arrays, words of bytes, memory without an array, and C functions by name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

CACHE_LINE_BYTES = 64
_I64 = ir.IntType(64)


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin on a cache line: a 64-byte vector across two lines costs two accesses."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view of an array, so that a kernel is compiled for one kind of array only."""
    array = array.view()
    array.flags.writeable = False
    return array


def c_function(name: str, returned: Any, *taken: Any) -> Any:
    """Return a C function for kernels to call, found by name, so that the kernels can be kept on disk.

    Args:
        name: of a function of this process, or of a library that llvmlite has loaded for good.
        returned: numba's type of the result.
        taken: numba's types of the arguments.
    """

    def declare(typing_context: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = [context.get_value_type(kind) for kind in (returned, *taken)]
            return builder.call(declared(builder.module, name, ir.FunctionType(kinds[0], kinds[1:])), args)

        return returned(*taken), generate

    names = ["typing_context", *(f"argument{i}" for i in range(len(taken)))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    declare.__signature__ = inspect.Signature([inspect.Parameter(one, kind) for one in names])  # type: ignore[attr-defined]
    return intrinsic(declare)


def declared(module: ir.Module, name: str, kind: ir.FunctionType) -> Any:
    """Return the declaration of a function in an LLVM module; add it if it is missing."""
    try:
        return module.get_global(name)
    except KeyError:
        return ir.Function(module, kind, name)


@intrinsic
def bytes_at(typing_context: Any, address: Any, size: Any) -> Any:
    """Return the `size` bytes at an address as a uint8 array that does not own them."""
    kind = types.Array(types.uint8, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        one = ir.Constant(_I64, 1)
        array.data = builder.inttoptr(args[0], context.get_value_type(types.voidptr))
        array.nitems, array.itemsize = args[1], one
        array.shape, array.strides = (
            builder.insert_value(ir.Constant(ir.ArrayType(_I64, 1), ir.Undefined), value, 0)
            for value in (args[1], one)
        )
        array.meminfo, array.parent = (
            ir.Constant(owner.type, None) for owner in (array.meminfo, array.parent)
        )
        return array._getvalue()

    return kind(types.uintp, types.intp), generate


def _word(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    """Return a pointer to eight bytes of an array of bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _I64.as_pointer())


@intrinsic
def load_le64(typing_context: Any, array: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array from `at`, the first one lowest, as uint64; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_word(context, builder, signature.args[0], args[0], args[1]))
        value.align = 1
        return value

    return types.uint64(array, types.int64), generate


@intrinsic
def load_be64(typing_context: Any, array: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array from `at`, the first one highest, as uint64; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_word(context, builder, signature.args[0], args[0], args[1]))
        value.align = 1
        return builder.bswap(value)

    return types.uint64(array, types.int64), generate


@intrinsic
def store_le64(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Write a uint64 as eight bytes of a uint8 array from `at`, the lowest first; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _word(context, builder, signature.args[0], args[0], args[1])).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate
