"""Timing of `StopSignal.agree` over gloo; ranks call it before every step to agree whether to stop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray

from engine.train.stop import StopSignal

_WARMUP = 20
_RESULT = "seconds.npy"


def agreement_times(num_ranks: int, num_steps: int) -> NDArray[np.float64]:
    """Time `StopSignal.agree` on several ranks of this machine, with no work between calls.

    Returns:
        float64 [num_steps], seconds of each call on rank 0, including its wait for the slowest rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (num_ranks, folder, num_steps)
        mp.start_processes(_agree, given, nprocs=num_ranks, start_method="forkserver")  # type: ignore[attr-defined, no-untyped-call]
        seconds: NDArray[np.float64] = np.load(Path(folder) / _RESULT, allow_pickle=False)
        return seconds


def _agree(rank: int, num_ranks: int, folder: str, num_steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks
    )
    seconds = np.zeros(num_steps)
    with StopSignal() as stop:
        for step in range(-_WARMUP, num_steps):
            start = time.perf_counter()
            stop.agree()
            if step >= 0:
                seconds[step] = time.perf_counter() - start
    if rank == 0:
        np.save(Path(folder) / _RESULT, seconds)
    dist.destroy_process_group()
