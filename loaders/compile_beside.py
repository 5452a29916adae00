"""A kernel that a second process compiles, while this one compiles others.

Numba compiles one function at a time in a process; what another has kept on disk it loads in a moment.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loaders.cores import available_cores

_LIMIT_S = 120.0  # several times what the largest kernel takes


@contextmanager
def compiled_beside(kernel: Any, call: Callable[[], object]) -> Iterator[None]:
    """Have another process compile a kernel while the block runs; after it, `call` finds it on disk.

    Nothing is started where the kernel is on disk already or cannot be kept there, nor on one core. A process
    that cannot start, fails or hangs leaves the work to whoever calls the kernel next.

    Args:
        kernel: numba's dispatcher of a kernel that is kept on disk.
        call: function of a module, without arguments, that calls the kernel with the types it is for.
    """
    process = _start(call) if available_cores() > 1 and _is_missing(kernel) else None
    if process is None:
        yield
        return
    with process:
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LIMIT_S)
        finally:
            process.kill()


def _start(call: Callable[[], object]) -> subprocess.Popen[bytes] | None:
    """Start a process that calls a function, found where this one finds it; None where none can start."""
    if not sys.executable:  # Python within another program
        return None
    folders = [folder for folder in sys.path if isinstance(folder, str)]
    work = f"from {call.__module__} import {call.__name__}; {call.__name__}()"
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {folders!r}; {work}"],
            stdin=nothing, stdout=nothing, stderr=nothing,
        )  # fmt: skip
    except OSError:
        return None


def _is_missing(kernel: Any) -> bool:
    """Tell whether a kernel can be kept on disk and was not since its source was written."""
    folder, function = kernel.stats.cache_path, kernel.py_func
    if folder is None:
        return False
    name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-*.nbi"
    written = Path(function.__code__.co_filename).stat().st_mtime
    return all(kept.stat().st_mtime < written for kept in Path(folder).glob(name))
