"""Arrays for kernels, operations that emit LLVM code, and C functions linked by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

CACHE_LINE_BYTES = 64
_I64 = ir.IntType(64)
_BYTES = types.Array(types.uint8, 1, "C")


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that start on a cache line, since a 64-byte vector across two lines costs two accesses."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: numba compiles a kernel twice if it gets read-only and writeable arrays."""
    array = array.view()
    array.flags.writeable = False
    return array


def operation(returned: Any, *taken: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that lets kernels call a function that emits LLVM code.

    The decorated function takes numba's `context`, llvmlite's `builder`, `kinds` (numba types of the
    arguments), and then the LLVM value of each argument. It returns the LLVM value of the result; for a void
    operation its return value is ignored. Kernels must pass arguments by position.

    Args:
        returned: numba type of the result.
        taken: numba types of the arguments; None accepts any type.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        def declare(typing_context: Any, *arguments: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(context, builder, signature.args, *args)
                return context.get_dummy_value() if returned is types.void else value

            kinds = [given if own is None else own for own, given in zip(taken, arguments, strict=True)]
            return returned(*kinds), generate

        update_wrapper(declare, emit)
        names = ["typing_context", *(f"argument{i}" for i in range(len(taken)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        declare.__signature__ = inspect.Signature([inspect.Parameter(one, kind) for one in names])  # type: ignore[attr-defined]
        return intrinsic(declare)

    return decorate


def c_function(name: str, returned: Any, *taken: Any) -> Any:
    """Return a C function for kernels, linked by name, not by address, so that kernels can be cached on disk.

    Args:
        name: a function of this process, or of a library that llvmlite has loaded permanently.
        returned, taken: numba types of the result and of the arguments.
    """

    @operation(returned, *taken)
    def call(context: Any, builder: Any, kinds: Any, *args: Any) -> Any:
        result, *given = (context.get_value_type(kind) for kind in (returned, *taken))
        return builder.call(declared(builder.module, name, ir.FunctionType(result, given)), args)

    return call


def declared(module: ir.Module, name: str, kind: ir.FunctionType) -> Any:
    """Return the declaration of a function in an LLVM module, adding the declaration if it is missing."""
    try:
        return module.get_global(name)
    except KeyError:
        return ir.Function(module, kind, name)


@operation(_BYTES, types.uintp, types.intp)
def bytes_at(context, builder, kinds, address, size):
    """Return the `size` bytes at an address as a uint8 array that does not own them."""
    array = context.make_array(_BYTES)(context, builder)
    one = ir.Constant(_I64, 1)
    array.data = builder.inttoptr(address, context.get_value_type(types.voidptr))
    array.nitems, array.itemsize = size, one
    array.shape, array.strides = (
        builder.insert_value(ir.Constant(ir.ArrayType(_I64, 1), ir.Undefined), value, 0)
        for value in (size, one)
    )
    array.meminfo, array.parent = (ir.Constant(owner.type, None) for owner in (array.meminfo, array.parent))
    return array._getvalue()


def _word(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    """Return an int64 pointer to element `at` of a uint8 array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _I64.as_pointer())


@operation(types.uint64, None, types.int64)
def load_le64(context, builder, kinds, array, at):
    """Return array[at : at + 8] of a uint8 array as a little-endian uint64, without a bounds check."""
    value = builder.load(_word(context, builder, kinds[0], array, at))
    value.align = 1
    return value


@operation(types.uint64, None, types.int64)
def load_be64(context, builder, kinds, array, at):
    """Return array[at : at + 8] of a uint8 array as a big-endian uint64, without a bounds check."""
    value = builder.load(_word(context, builder, kinds[0], array, at))
    value.align = 1
    return builder.bswap(value)


@operation(types.void, None, types.int64, types.uint64)
def store_le64(context, builder, kinds, array, at, value):
    """Write a uint64 to array[at : at + 8] of a uint8 array, little-endian, without a bounds check."""
    builder.store(value, _word(context, builder, kinds[0], array, at)).align = 1
