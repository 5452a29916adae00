"""Running shard jobs on a Ray cluster, one task for each shard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from loaders.common.errors import UserError
from loaders.packs.shards.job import ShardJob, write_shard

_JOBS_IN_FLIGHT = 2  # jobs submitted per CPU of the cluster, so that no worker waits for the driver


def run_jobs_on_ray(jobs: Sequence[ShardJob], num_workers: int) -> Iterator[ShardJob]:
    """Run all jobs on Ray and yield each when its shard is finished, in any order.

    Unless this process is connected to Ray, the environment variable RAY_ADDRESS names the cluster; without
    it, a cluster is started on this machine. All machines must see sources and pack under the same paths.

    Args:
        num_workers: CPUs of the cluster that is started on this machine; no effect on any other cluster.

    Raises:
        UserError: Ray did not start, a job raised it, or a worker was lost more often than Ray retries.
    """
    import ray

    began = not ray.is_initialized()
    if began:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_workers}
        try:
            ray.init(log_to_driver=False, include_dashboard=False, **local)
        except Exception as error:  # Ray raises no narrower class if a node or a cluster does not answer
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"Ray did not start ({reason}): check RAY_ADDRESS, give a busy machine more time with "
                f"RAY_raylet_start_wait_time_s=300, or leave --executor out"
            ) from None
    try:
        yield from _run(ray, jobs)
    finally:
        if began:
            ray.shutdown()


def _run(ray: Any, jobs: Sequence[ShardJob]) -> Iterator[ShardJob]:
    task = ray.remote(num_cpus=1, max_retries=2)(_write_shard_at)
    most = max(1, int(ray.cluster_resources().get("CPU", 1))) * _JOBS_IN_FLIGHT
    waiting, folder = iter(jobs), os.getcwd()
    running: dict[Any, ShardJob] = {}
    while True:
        for job in islice(waiting, most - len(running)):
            running[task.remote(job, folder)] = job
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"a Ray worker was lost ({reason}): start the same command again, it resumes"
            ) from None
        yield running.pop(done)


def _write_shard_at(job: ShardJob, folder: str) -> None:
    os.chdir(folder)  # paths of the command line are relative to this folder
    write_shard(job)
