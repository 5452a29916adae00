"""Running shard jobs in worker processes that never outlive the packer."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from itertools import islice

from loaders.common.errors import UserError
from loaders.packs.shards.job import ShardJob, write_shard
from loaders.packs.shards.parts import PartInfo


def run_jobs(jobs: Sequence[ShardJob], num_processes: int) -> Iterator[ShardJob]:
    """Run all jobs and yield each when its shard is finished, in any order.

    Raises:
        UserError: what a job raised, or a worker that was killed from outside.
    """
    if num_processes <= 1:
        for job in jobs:
            write_shard(job)
            yield job
        return
    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    # Spawned, not forked: the caller may have threads, and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs)
    with ProcessPoolExecutor(num_processes, context, initializer=_start_worker) as pool:
        try:
            running: dict[Future[PartInfo], ShardJob] = {}
            while True:
                for job in islice(waiting, 2 * num_processes - len(running)):
                    running[pool.submit(write_shard, job)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool:
            raise UserError(
                "a packing worker was killed (by the system for its memory, or by hand): start the same "
                "command again, it resumes; fewer --workers need less memory"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_jobs_in_threads(jobs: Sequence[ShardJob], num_threads: int) -> Iterator[ShardJob]:
    """Run all jobs in threads of this process and yield each when its shard is finished, in any order.

    This is for work that compiled code does without the interpreter's lock; processes would only start more
    slowly.

    Raises:
        UserError: what a job raised.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            running = {pool.submit(write_shard, job): job for job in jobs}
            for future in as_completed(running):
                future.result()
                yield running[future]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Make a worker quiet, and let it end with its parent even if that is killed."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
