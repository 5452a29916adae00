"""Peer: torchvision v2 transforms on uint8 tensors in a DataLoader, torchvision's recommended set-up."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload
from tools.peers.torchvision_pil import endless
from tools.peers.torchvision_views import ViewsOf, tensor_views


def decode(encoded: torch.Tensor) -> torch.Tensor:
    """Decode JPEG bytes (uint8 [N]) to a uint8 tensor [3, H, W] with torchvision's own decoder."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchcodec, and still its fastest here
        pixels: torch.Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    return pixels


class TensorImages(Dataset[tuple[torch.Tensor, ...]]):
    """JPEG files decoded to tensors, once for all views."""

    def __init__(self, paths: list[Path], views: ViewsOf) -> None:
        self.paths = [str(path) for path in paths]
        self.views = views

    def __len__(self) -> int:
        """Return the number of images of an epoch."""
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        """Return the views of one image."""
        with open(self.paths[row], "rb") as file:
            image = decode(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8))
        return self.views(image)


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    return endless(TensorImages(corpus.paths, tensor_views(workload)), workload)


CONTENDER = Contender(
    name="torchvision_v2",
    libraries=("torch", "torchvision"),
    setup="DataLoader, one worker process per thread, persistent, prefetch 4; one decode for all views",
    differences="",
    batches=batches,
    shares_crops=True,
)
