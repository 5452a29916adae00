"""Run a function on several gloo ranks, forked as by `tests.forked`, and return their results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.forked import ROOT

RankFunction = Callable[[int, int], dict[str, Tensor]]


def _entry(
    rank: int, num_ranks: int, folder: str, function: RankFunction, environment: dict[str, str]
) -> None:
    os.environ.clear()  # the fork server has that of the test that started it
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks
    )
    results = function(rank, num_ranks)
    save_file(
        {k: v.detach().contiguous().clone() for k, v in results.items()}, f"{folder}/{rank}.safetensors"
    )
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(function: RankFunction, num_ranks: int = 2) -> list[dict[str, Tensor]]:
    """Run a module-level `function(rank, num_ranks)`; return each rank's tensors in rank order."""
    with tempfile.TemporaryDirectory() as folder, chdir(ROOT):
        given = (num_ranks, folder, function, dict(os.environ))
        mp.start_processes(_entry, given, nprocs=num_ranks, start_method="forkserver")
        return [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(num_ranks)]
