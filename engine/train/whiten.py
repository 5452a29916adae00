"""Computes the kernels of whitening stems from the first batches of a run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from engine.nets.whitening import WhiteningStem, patch_moments, whitening_kernels
from engine.train.distributed import all_reduce_sum, world_size
from loaders.batch import Loader, PairedBatch

_ENOUGH = 5000  # images, as in the source of `engine.nets.whitening`


def whiten_stems(networks: nn.Module, loader: Loader[Any]) -> None:
    """Set the kernels of all stems that have none yet; every rank calls this and gets the same kernels.

    The kernels are a pure function of the loader's first batches. A stem that came with pre-trained weights
    keeps its kernels, and a resumed run finds the kernels in its checkpoint.

    Args:
        networks: module with all networks that a run trains or averages; stems of one size get the same
            kernels.
        loader: the training loader.
    """
    stems = [part for part in networks.modules() if isinstance(part, WhiteningStem)]
    waiting = [stem for stem in stems if not bool(stem.is_set)]
    if not waiting:
        return
    moments: dict[int, Tensor] = {}
    for x in _first_views(loader):
        for size in {stem.kernel_size for stem in waiting}:
            found = patch_moments(x, size)
            moments[size] = moments[size] + found if size in moments else found
    for size, found in moments.items():
        kernels = whitening_kernels(all_reduce_sum(found), size)
        for stem in waiting:
            if stem.kernel_size == size:
                stem.set_kernels(kernels)


@torch.no_grad()
def _first_views(loader: Loader[Any]) -> Iterator[Tensor]:
    """Yield the first view of each image, in batches: at least `_ENOUGH` over all ranks, or a whole epoch."""
    batches = loader.epoch(0)
    wanted = -(-_ENOUGH // (world_size() * _rows(loader)))
    for batch in islice(batches, min(wanted, loader.steps_per_epoch)):
        yield (batch.unlabeled if isinstance(batch, PairedBatch) else batch).views[0]


def _rows(loader: Loader[Any]) -> int:
    return max(1, loader.batch_size // world_size())
