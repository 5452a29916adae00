"""Running shard jobs in threads, or in worker processes that never outlive the packer."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from loaders.common.errors import UserError
from loaders.packs.shards.job import ShardJob, write_shard


def run_jobs(jobs: Sequence[ShardJob], num_workers: int, in_threads: bool = False) -> Iterator[ShardJob]:
    """Run all jobs and yield each when its shard is finished, in any order.

    Args:
        num_workers: number of shards written at the same time; 1 or less uses the calling thread.
        in_threads: use threads of this process, which start faster than processes; for work that mostly
            releases the GIL.

    Raises:
        UserError: a job raised it, or a worker process was killed.
    """
    if num_workers <= 1:
        for job in jobs:
            write_shard(job)
            yield job
        return
    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    # Spawned, not forked: the caller may have threads, and a fork would copy the locks that they hold.
    context = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(num_workers)
        if in_threads
        else ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
    ) as pool:
        try:
            running = {pool.submit(write_shard, job): job for job in jobs}
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BrokenProcessPool:
            raise UserError(
                "a packing worker was killed (by the system for its memory, or by hand): start the same "
                "command again, it resumes; fewer --workers need less memory"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Silence Pillow's warnings in a worker, and end it with its parent, even if the parent is killed."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
