"""Kernels kept on disk as machine code, which a process calls without loading numba.

Loading numba and what it keeps of a kernel takes most of a second; machine code alone, a few milliseconds. So
a kernel that is called here is compiled once, and its object file is kept under a name that tells the code
it came from, the compiler's version and the processor. LLVM's linker puts it into memory; arguments go to it
as numba's own calls would pass them. Where nothing is kept, or it is damaged, the kernel is compiled.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding
from numpy.typing import NDArray

from loaders.cache_folder import cache_folder
from loaders.errors import UserError
from loaders.packs.atomic import write_atomic

_ROOT = Path(__file__).resolve().parents[2]
# What the machine code of a kernel depends on.
_SOURCES = ("compiler.py", "kernels/**/*.py", "packs/stored/sizes.py")
_SETTINGS = ("NUMBA_BOUNDSCHECK", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "NUMBA_OPT")
_DIGEST_BYTES = 32
# What numba's functions return: done, or done with None.
_DONE = (0, -2)
_lock = threading.Lock()


class Kept:
    """An array that goes to kernels again and again: taken apart once.

    Attributes:
        array: C-contiguous.
    """

    __slots__ = ("array", "flat", "kind")

    def __init__(self, array: NDArray[Any]) -> None:
        if not array.flags.c_contiguous:
            raise TypeError("expected a C-contiguous array, found one with gaps")
        self.array = array
        self.kind = array.dtype.num, array.itemsize, array.ndim
        # As numba passes an array: two owners, which ours have not, then what it looks like.
        self.flat = (0, 0, array.size, array.itemsize, array.ctypes.data, *array.shape, *array.strides)


class StoredKernel:
    """A compiled function, loaded from disk or compiled when it is first called.

    Arguments are C-contiguous arrays (as they are, or `Kept`) and whole numbers, always of the same kinds.
    Calls hold no lock.

    Args:
        module: name of the module in `loaders.kernels` that defines it.
        name: its name there; an `entry` that returns nothing, a whole number or a bool.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name
        self._function: Callable[..., int] | None = None
        self._engine: Any = None
        self._kinds: list[tuple[int, ...]] = []

    def __call__(self, *arguments: Any) -> int:
        """Call it; return what it returns, 0 for nothing.

        Raises:
            TypeError: arrays of other kinds than those of the first call, or with gaps.
            RuntimeError: the compiled code has failed, which none of it does for bad data.
        """
        flat: list[int] = []
        kinds: list[tuple[int, ...]] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                argument = Kept(argument)
            if type(argument) is Kept:
                flat += argument.flat
                kinds.append(argument.kind)
            else:
                flat.append(argument)
                kinds.append(())
        function = self._function or self._load(kinds, arguments)
        if kinds != self._kinds:
            raise TypeError(f"{self._module}.{self._name}: expected arrays of {self._kinds}, found {kinds}")
        result = ctypes.c_int64(0)
        status = function(ctypes.byref(result), ctypes.byref(ctypes.c_void_p()), *flat)
        if status not in _DONE:
            raise RuntimeError(f"compiled {self._module}.{self._name} has failed with status {status}")
        return result.value

    def _load(self, kinds: list[tuple[int, ...]], arguments: tuple[Any, ...]) -> Callable[..., int]:
        with _lock:
            if self._function is None:
                plain = [one.array if type(one) is Kept else one for one in arguments]
                texts = [_kind(one) for one in plain]
                symbol, code = self._kept(texts) or self._compiled(texts, plain)
                self._kinds = kinds
                self._function = self._linked(symbol, code, plain)
        return self._function

    def _file_name(self, kinds: list[str]) -> str:
        key = hashlib.sha256(json.dumps([_what_decides(), kinds]).encode()).hexdigest()
        return f"{self._module}.{self._name}-{key[:24]}.o"

    def _kept(self, kinds: list[str]) -> tuple[str, bytes] | None:
        """Return the symbol and the object file, None where no whole one is kept."""
        name = self._file_name(kinds)
        for folder in _folders():
            with suppress(OSError, ValueError):
                data = (folder / name).read_bytes()
                content = data[_DIGEST_BYTES:]
                if hashlib.sha256(content).digest() == data[:_DIGEST_BYTES]:
                    symbol, code = content.split(b"\n", 1)
                    return symbol.decode(), code
        return None

    def _compiled(self, kinds: list[str], arguments: list[Any]) -> tuple[str, bytes]:
        """Compile it, and keep it where a folder can be written."""
        from loaders.compiler import object_code  # loads numba

        module = importlib.import_module(f"loaders.kernels.{self._module}")
        symbol, code = object_code(getattr(module, self._name), arguments)
        content = symbol.encode() + b"\n" + code
        for folder in _folders():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / self._file_name(kinds), hashlib.sha256(content).digest() + content)
                break
        return symbol, code

    def _linked(self, symbol: str, code: bytes, arguments: list[Any]) -> Callable[..., int]:
        """Return a function that calls it."""
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine()
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        taken: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
        for argument in arguments:
            is_array = isinstance(argument, np.ndarray)
            taken += [ctypes.c_int64] * (5 + 2 * argument.ndim if is_array else 1)
        return ctypes.CFUNCTYPE(ctypes.c_int32, *taken)(self._engine.get_function_address(symbol))


def _kind(argument: Any) -> str:
    """Return what the compiled code assumes of an argument."""
    return f"{argument.dtype.descr}{argument.ndim}" if isinstance(argument, np.ndarray) else "int64"


@lru_cache(maxsize=1)
def _what_decides() -> list[str]:
    """Return what, besides the kinds of its arguments, decides the machine code of a kernel."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return [
        digest.hexdigest(),
        sys.version,
        version("numba"),
        version("llvmlite"),
        np.__version__,
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        *(os.environ.get(name, "") for name in _SETTINGS),
    ]


def _folders() -> Iterator[Path]:
    """Yield where object files are looked for, and kept in the first that can be written."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen) / "sluice"
    yield _ROOT / "kernels" / "__pycache__"
    with suppress(UserError):  # no home
        yield cache_folder() / "kernels"
