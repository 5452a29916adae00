"""Decorators that compile kernels with numba, and the folder that caches the machine code.

Numba recompiles a kernel if the file that defines it has changed, but does not notice changes of functions
that are inlined from other files. So each version of the kernels has its own cache folder, named by a hash
of the kernels' sources, their folder, the versions of the software that compiles them, and the processor.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba.extending import register_jitable

from loaders.common.cache_folder import cache_folder
from loaders.common.errors import UserError
from loaders.common.locks import locked

_SOURCES = Path(__file__).parent
_UNUSED_S = 30 * 86_400.0  # cache folders that have been unused for longer are removed
_DAY_S = 86_400.0
config: Any = numba.config
# Kernels are never passed to each other as values, so they need no C wrapper (`no_cfunc_wrapper`).
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
# Kernels with these options allocate nothing, so reference counting is off (`_nrt`, documented in
# `numba.extending.register_jitable`); counting took a tenth of the time of kernels that slice rows. fastmath
# lets LLVM reorder sums and assume finite values; on one machine the results are still always the same bytes.
_FAST: dict[str, Any] = {**_OPTIONS, "_nrt": False, "fastmath": True}


def _state() -> str:
    """Return a hash of everything that decides the machine code of kernels, except their argument types."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(
        set(_SOURCES.rglob("*.py")) - set(_SOURCES.glob("device/*.py"))
    ):  # Triton caches device kernels by itself
        digest.update(path.read_bytes())
    versions = sys.version, *(version(name) for name in ("numba", "llvmlite", "numpy"))
    processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    digest.update("\n".join([str(_SOURCES), *versions, *processor]).encode())
    return digest.hexdigest()


def _open_folder() -> Path | None:
    """Return the cache folder named after `_state`, created if missing; None if it cannot be written."""
    with suppress(UserError, OSError):  # no folder of the user's own; a file system that is full or read-only
        base = Path(config.CACHE_DIR) if config.CACHE_DIR else cache_folder().parent
        folder = base / "sluice" / "kernels" / _state()
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if is_new:
            _remove_unused(folder.parent)
        if time.time() - folder.stat().st_mtime > _DAY_S:
            os.utime(folder)
        if os.access(folder, os.W_OK):
            return folder
    return None


def _remove_unused(folder: Path) -> None:
    """Remove the cache folders in `folder` that no process has opened for a month."""
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(old, ignore_errors=True)


FOLDER = _open_folder()


def _kept(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a kernel and caches it in `FOLDER`, unless that is None."""

    def decorate(function: Any) -> Any:
        others = config.CACHE_DIR  # restored below: other code that uses numba keeps its own cache folder
        try:
            config.CACHE_DIR = str(FOLDER or "")
            return numba.njit(cache=FOLDER is not None, **options)(function)
        finally:
            config.CACHE_DIR = others

    return decorate


kernel = _kept(**_FAST)

# Strict arithmetic, so that every machine gets the same bytes: for random numbers and for packing.
exact_kernel = _kept(**_OPTIONS)

# For functions that only kernels call: they are compiled into the kernels. From Python they run uncompiled.
inlined = register_jitable(**_FAST)
exact_inlined = register_jitable(**_OPTIONS)


@contextmanager
def first_use(*names: str) -> Iterator[None]:
    """Return a context manager for a block that calls kernels for the first time in this process.

    The calls load the kernels from the cache; if some must be compiled first, a line on stderr says so. Of
    several processes, one compiles and the others wait, if there is a cache folder that can be locked.

    Args:
        names: what the block loads, in words for that line.
    """
    if FOLDER is None:
        _tell(names, "at every start: no cache folder can be written (set XDG_CACHE_HOME or NUMBA_CACHE_DIR)")
        yield
        return
    marks = {name: FOLDER / f"{name.replace(' ', '-')}.done" for name in names}
    with ExitStack() as stack:
        if not all(mark.exists() for mark in marks.values()):
            with suppress(UserError, OSError):  # no locks on this file system: each process compiles
                stack.enter_context(locked(FOLDER / "lock"))
            if missing := [name for name, mark in marks.items() if not mark.exists()]:
                _tell(missing, "once for this machine")
        yield
        for mark in marks.values():
            with suppress(OSError):
                mark.touch()


def _tell(names: tuple[str, ...] | list[str], when: str) -> None:
    print(f"compiling {', '.join(names)}, {when}", file=sys.stderr, flush=True)
