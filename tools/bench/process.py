"""Processes that a tool starts: environment, memory, time and end; and facts about the machine."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from loaders.common.cores import available_cores

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
Memory = Callable[[psutil.Process], tuple[int, int]]


@dataclass
class Usage:
    """Time and memory that a process and its children used.

    Attributes:
        code: exit code; negative if a signal ended the process.
        seconds: wall time until the process ended.
        cpu_s: CPU seconds, user and system, summed over its processes, each as of its last sample.
        peak_rss_bytes: peak resident memory, summed over its processes.
        peak_own_bytes: peak memory without mapped files, as the argument `memory` of `watched` counts it.
    """

    code: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    peak_own_bytes: int = 0


def private(process: psutil.Process) -> tuple[int, int]:
    """Return resident bytes, with and without shared pages (mapped files, memory shared by workers)."""
    memory = process.memory_info()
    return int(memory.rss), int(memory.rss - memory.shared)


def proportional(process: psutil.Process) -> tuple[int, int]:
    """Return resident bytes, and proportional bytes without the page cache.

    In the second number, a page that n processes share counts 1/n for each of them.
    """
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = dict(line.split(":", 1) for line in lines)
    kilobytes = sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem") if name in fields)
    return int(process.memory_info().rss), kilobytes * 1024


def watched(
    command: Sequence[str],
    environ: Mapping[str, str],
    log: Path | None = None,
    limit_s: float = math.inf,
    sample_s: float = 0.1,
    memory: Memory = private,
    cwd: Path = ROOT,
) -> Usage:
    """Run a command until it ends or a time limit passes, then kill what is left in its session.

    Args:
        log: file for output and errors; a pipe that nobody reads would block the command. None drops the
            output and shows the errors.
        limit_s: seconds after which the command is killed.
        sample_s: shortest time between two samples of memory and CPU time.
        memory: returns resident bytes, and bytes without mapped files, of one process.
    """
    start = time.monotonic()
    with open(log or os.devnull, "w") as stream:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdout=stream,
            stderr=stream if log else None,
            start_new_session=True,
        )
        try:
            used = _watch(process, start + limit_s, sample_s, memory)
            used.seconds = time.monotonic() - start
        finally:  # needed after Ctrl-C too: the signal does not reach the command's own session
            _end_family(process)
    used.code = process.wait()
    return used


def _watch(process: subprocess.Popen[bytes], deadline: float, sample_s: float, memory: Memory) -> Usage:
    """Sample a process and its children until the process ends or the deadline passes."""
    used, cpu_s = Usage(), dict[int, float]()
    while process.poll() is None and time.monotonic() < deadline:
        began = time.monotonic()
        rss = own = 0
        for member in _family(process.pid):
            with suppress(psutil.Error, OSError):  # raised if the process has just ended
                its_rss, its_own = memory(member)
                times = member.cpu_times()
                rss, own = rss + its_rss, own + its_own
                cpu_s[member.pid] = times.user + times.system
        used.peak_rss_bytes = max(used.peak_rss_bytes, rss)
        used.peak_own_bytes = max(used.peak_own_bytes, own)
        with suppress(subprocess.TimeoutExpired):
            # To count memory, the kernel walks all pages of a process: measure a tenth of the time at most.
            process.wait(max(sample_s, 9 * (time.monotonic() - began)))
    used.cpu_s = sum(cpu_s.values())
    return used


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end_family(process: subprocess.Popen[bytes]) -> None:
    # The workers of a killed process keep running in its session; find them by the session's id.
    for member in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error, PermissionError):
            if os.getsid(member.pid) == process.pid:
                member.kill()
    process.wait()


def environment(num_threads: int | None = None) -> dict[str, str]:
    """Return this process's environment, with the project on Python's path and the variables `THREADS` set.

    Args:
        num_threads: threads of each library that reads such a variable; None leaves the variables unchanged.
    """
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = dict.fromkeys(THREADS if num_threads else (), str(num_threads))
    return {**os.environ, **threads, "PYTHONPATH": paths}


def last_line(log: Path) -> str:
    """Return the last line of a log, which tells why a failed process failed; "" if the log is empty."""
    return (log.read_text(errors="replace").strip().splitlines() or [""])[-1]


def now() -> str:
    """Return the current time in UTC, as records state it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def cpu_name() -> str:
    """Return the model of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine() -> dict[str, Any]:
    """Describe this machine for a record: processor, cores, memory, system, Python."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of these libraries; libraries that are not installed are left out."""
    found = {}
    for library in libraries:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found
