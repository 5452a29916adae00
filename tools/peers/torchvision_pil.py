"""Peer: torchvision transforms on PIL images in a DataLoader, the usual set-up of published code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload
from tools.peers.torchvision_views import ViewsOf, pil_views


class Files(Dataset[tuple[torch.Tensor, ...]]):
    """Dataset of image files; each image is decoded once for all its views."""

    def __init__(self, paths: list[Path], decode: Callable[[str], Any], views: ViewsOf) -> None:
        self.paths = [str(path) for path in paths]
        self.decode, self.views = decode, views

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        """Return the views of one image."""
        return self.views(self.decode(self.paths[row]))


def decode_file(path: str) -> Image.Image:
    """Decode a file with PIL."""
    with Image.open(path) as file:
        return file.convert("RGB")


def endless(dataset: Dataset[tuple[torch.Tensor, ...]], workload: Workload) -> Iterator[Views]:
    """Yield shuffled batches without end from worker processes, one per thread of the workload."""
    loader = DataLoader(
        dataset,
        workload.batch_size,
        shuffle=True,
        num_workers=workload.threads,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=4,
        generator=torch.Generator().manual_seed(workload.seed),
    )
    while True:
        for batch in loader:
            yield tuple(batch)


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    return endless(Files(corpus.paths, decode_file, pil_views(workload)), workload)


CONTENDER = Contender(
    name="torchvision_pil",
    libraries=("torch", "torchvision", "pillow"),
    setup="DataLoader, one worker process per thread, persistent, prefetch 4; one PIL decode for all views",
    differences="blur is PIL's box approximation of a Gaussian",
    batches=batches,
    shares_crops=True,
)
