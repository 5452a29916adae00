"""One timed run of one contender, or its preparation, started as `python -m tools.bench.measure`."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import tyro

from loaders.common.errors import MissingBackendError
from tools.bench.contender import Contender, Views, find_contender
from tools.bench.corpus import Corpus, read_corpus
from tools.bench.workload import Workload

MISSING, FAILED = 3, 4


@dataclass(frozen=True)
class Run:
    """The task of one process, for one contender of a `Benchmark`.

    Attributes:
        out: file for the result, as JSON.
        prepare: write the images in the contender's format instead of measuring.
    """

    contender: str
    corpus: Path
    out: Path
    workload: Workload
    seconds: float
    warmup_s: float
    prepare: bool = False


@dataclass(frozen=True)
class Timing:
    """The result of one run.

    Attributes:
        images: source images delivered in the timed part.
        cpu_s: CPU seconds spent in the timed part, summed over this process and its children.
        first_batch_s: seconds from the import of the contender to its first batch; torch is imported before.
        num_processes: this process and its children at the end.
        num_threads: threads of these processes.
    """

    images: int
    seconds: float
    cpu_s: float
    first_batch_s: float
    num_processes: int
    num_threads: int


def pin(cores: int) -> None:
    """Bind this process and its future children to the first `cores` of its cores, if the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def measure(
    contender: Contender,
    workload: Workload,
    corpus: Corpus,
    seconds: float,
    warmup_s: float,
    start: float | None = None,
) -> Timing:
    """Time a contender's batches for a fixed duration after a warm-up.

    The warm-up takes at least 8 batches, so that the timed part does not begin with batches that were
    prefetched while the loader started. Only the first batch is checked, and none of a limit.

    Args:
        start: `time.perf_counter()` before the contender was imported; None takes the time of this call.

    Raises:
        ValueError: the first batch has other views than the workload, or a constant image.
    """
    start = time.perf_counter() if start is None else start
    batches = contender.batches(workload, corpus)
    first = next(batches)
    first_batch_s = time.perf_counter() - start
    if contender.kind != "limit":
        check_views(first, workload)
    _take(batches, warmup_s, at_least=8)
    cpu_before = _cpu_seconds()
    count, elapsed = _take(batches, seconds, at_least=1)
    cpu_s = _cpu_seconds() - cpu_before
    family = _family()
    threads = sum(process.num_threads() for process in family)
    return Timing(count * workload.batch_size, elapsed, cpu_s, first_batch_s, len(family), threads)


def check_views(views: Views, workload: Workload) -> None:
    """Raise ValueError unless the views are full batches, NCHW or NHWC, with varied first images."""
    num, side = workload.batch_size, workload.side
    shapes = [tuple(view.shape) for view in views]
    expected = {(num, 3, side, side), (num, side, side, 3)}
    if len(views) != len(workload.view_list) or not set(shapes) <= expected:
        raise ValueError(f"views: expected {len(workload.view_list)} of {expected}, found {shapes}")
    if any(float(view[0].max()) == float(view[0].min()) for view in views):
        raise ValueError("views: expected pixels, found a constant image")


def _take(batches: Iterator[Views], seconds: float, at_least: int) -> tuple[int, float]:
    count = 0
    start = time.perf_counter()
    elapsed = 0.0
    while count < at_least or elapsed < seconds:
        next(batches)
        count += 1
        elapsed = time.perf_counter() - start
    return count, elapsed


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_seconds() -> float:
    times = [process.cpu_times() for process in _family()]
    return float(sum(t.user + t.system for t in times))


def main(run: Run) -> int:
    """Prepare or measure, write the result, and return the exit code."""
    import torch  # noqa: F401 imported before the clock starts: almost every contender and user needs it

    pin(run.workload.threads)
    start = time.perf_counter()
    corpus = read_corpus(run.corpus)
    try:
        contender = find_contender(run.contender)
        if run.prepare:
            contender.prepare(run.workload, corpus)
        else:
            timing = measure(contender, run.workload, corpus, run.seconds, run.warmup_s, start)
            run.out.write_text(json.dumps(asdict(timing)))
    except MissingBackendError as error:
        print(error, file=sys.stderr)
        return MISSING
    except ImportError as error:
        print(f"{error}; install it: pip install '.[peers]' (or '.[ffcv]' for FFCV)", file=sys.stderr)
        return MISSING
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


if __name__ == "__main__":
    code = main(tyro.cli(Run))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # do not wait for the contender's threads and workers, which could delay the next run
