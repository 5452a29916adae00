"""Train runs in parts, on a changing number of ranks; run as `python changing_ranks.py PACK WORK`.

Every rank is a forked child, so that torch is imported only once. Each part writes the pack rows of its steps
to WORK/NAME-rows-STEP-RANK.json, beside the run folder WORK/NAME.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from loaders import LoaderOptions, build_loader, open_pack
from loaders.batch import Batch
from loaders.epochs import EpochLoader
from loaders.views import presets
from tests.engine.synthetic import train_small

PACK, WORK = Path(sys.argv[1]), Path(sys.argv[2])
PARTS = {
    "whole": [(1, 6)],
    "more": [(1, 2), (2, 6)],  # number of ranks, steps of the run so far
    "fewer": [(2, 2), (1, 6)],
    "nodes": [(4, 6)],
}
RANKS_PER_NODE = 2


def make_loader(rank: int, num_ranks: int) -> EpochLoader:
    """Build the loader of a rank: 3 steps per epoch of 8 images."""
    views = (presets.crop_flip(16, 0.5, 0.5),) * 2
    split = open_pack(PACK).split("train")
    return build_loader(
        split, views, 8, options=LoaderOptions(seed=3, num_threads=1, rank=rank, num_ranks=num_ranks)
    )


class Recorded:
    """A loader that records the rows of every step."""

    def __init__(self, inner: EpochLoader, name: str, rank: int) -> None:
        self._inner, self._name, self._rank = inner, name, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        first = epoch * self._inner.steps_per_epoch + start_step
        for step, batch in enumerate(self._inner.epoch(epoch, start_step), first):
            path = WORK / f"{self._name}-rows-{step}-{self._rank}.json"
            path.write_text(json.dumps(batch.index.tolist()))
            yield batch


def recorded(name: str, rank: int, *arguments: Any, **options: Any) -> DistributedDataParallel:
    """Wrap a module in DistributedDataParallel, and record its options."""
    (WORK / f"{name}-ddp-{rank}.json").write_text(json.dumps(options))
    return DistributedDataParallel(*arguments, **options)


def train_rank(name: str, rank: int, num_ranks: int, port: int, max_steps: int) -> None:
    """Train in this forked process, then exit from it."""
    try:
        if num_ranks > 1:
            node, local_rank = divmod(rank, RANKS_PER_NODE)  # torchrun and accelerate set the variables below
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "GROUP_RANK": str(node)}
            os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(RANKS_PER_NODE)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        warnings.simplefilter("error", UserWarning)  # such as the one about strides that cost a copy per step
        torch.nn.parallel.DistributedDataParallel = partial(recorded, name, rank)  # type: ignore[misc]
        loader = Recorded(make_loader(rank, num_ranks), name, rank)
        train_small(WORK / name, loader=loader, dropout=0.0, max_steps=max_steps, resume=True)
        os._exit(0)
    except BaseException as error:
        print(f"{name}, rank {rank}: {error!r}", file=sys.stderr)
        os._exit(1)


def main() -> None:
    torch.set_num_threads(1)
    make_loader(0, 1).close()  # compile the kernels before the fork
    for name, parts in PARTS.items():
        for num_ranks, max_steps in parts:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            children = []
            for rank in range(num_ranks):
                child = os.fork()
                if child == 0:
                    train_rank(name, rank, num_ranks, port, max_steps)
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            assert not any(codes), f"{name} on {num_ranks} ranks ended with {codes}"


if __name__ == "__main__":
    main()
