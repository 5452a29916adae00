"""Memory for kernels, operations that emit LLVM code, and C functions found by name."""

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


def operation(returned: Any, *taken: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that turns a function into an operation for kernels; the function emits LLVM code.

    The function takes `context` (numba's), `builder`, `kinds` (numba's types of the arguments), and then each
    value. It returns the value of the operation, if that has one. Kernels pass arguments by position.

    Args:
        returned: numba's type of the result.
        taken: numba's types of the arguments; None where that is left to the kernel.
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
    """Return a C function for kernels to call, found by name, so that the kernels can be kept on disk.

    Args:
        name: of a function of this process, or of a library that llvmlite has loaded for good.
        returned: numba's type of the result.
        taken: numba's types of the arguments.
    """

    @operation(returned, *taken)
    def call(context: Any, builder: Any, kinds: Any, *args: Any) -> Any:
        result, *given = (context.get_value_type(kind) for kind in (returned, *taken))
        return builder.call(declared(builder.module, name, ir.FunctionType(result, given)), args)

    return call


def declared(module: ir.Module, name: str, kind: ir.FunctionType) -> Any:
    """Return the declaration of a function in an LLVM module; add it if it is missing."""
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
    """Return a pointer to eight bytes of an array of bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _I64.as_pointer())


@operation(types.uint64, None, types.int64)
def load_le64(context, builder, kinds, array, at):
    """Return eight bytes of a uint8 array from `at`, the first one lowest, as uint64; no bounds check."""
    value = builder.load(_word(context, builder, kinds[0], array, at))
    value.align = 1
    return value


@operation(types.uint64, None, types.int64)
def load_be64(context, builder, kinds, array, at):
    """Return eight bytes of a uint8 array from `at`, the first one highest, as uint64; no bounds check."""
    value = builder.load(_word(context, builder, kinds[0], array, at))
    value.align = 1
    return builder.bswap(value)


@operation(types.void, None, types.int64, types.uint64)
def store_le64(context, builder, kinds, array, at, value):
    """Write a uint64 as eight bytes of a uint8 array from `at`, the lowest first; no bounds check."""
    builder.store(value, _word(context, builder, kinds[0], array, at)).align = 1
