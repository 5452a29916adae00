"""A kernel that a second process compiles, while this one compiles others.

Numba compiles one function at a time in a process; what another has kept on disk it loads in a moment.
"""

from __future__ import annotations

import os
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
    that fails or hangs leaves the work to whoever calls the kernel next.

    Args:
        kernel: numba's dispatcher of a kernel that is kept on disk.
        call: function of a module, without arguments, that calls the kernel with the types it is for.
    """
    if available_cores() < 2 or not _is_missing(kernel):
        yield
        return
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", f"from {call.__module__} import {call.__name__}; {call.__name__}()"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LIMIT_S)
        finally:
            process.kill()


def _is_missing(kernel: Any) -> bool:
    """Tell whether a kernel can be kept on disk and was not since its source was written."""
    folder, function = kernel.stats.cache_path, kernel.py_func
    if folder is None:
        return False
    name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-*.nbi"
    written = Path(function.__code__.co_filename).stat().st_mtime
    return all(kept.stat().st_mtime < written for kept in Path(folder).glob(name))
