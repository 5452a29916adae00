"""Peer: kornia's batched augmentations after a DataLoader that decodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import Dataset

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import FixMatchView, Workload
from tools.peers.kornia_views import kornia_view
from tools.peers.torchvision_pil import endless
from tools.peers.torchvision_v2 import decode
from tools.peers.torchvision_views import Transform, resized_crop


class Decoded(Dataset[tuple[torch.Tensor, ...]]):
    """Decoded images of one size, or crops if sizes differ, since images could not be batched."""

    def __init__(self, paths: list[Path], crops: tuple[Transform, ...]) -> None:
        self.paths = [str(path) for path in paths]
        self.crops = crops

    def __len__(self) -> int:
        """Return the number of images of an epoch."""
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        """Return the image, or one crop per view."""
        with open(self.paths[row], "rb") as file:
            image = decode(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)).contiguous()
        return tuple(crop(image) for crop in self.crops) or (image,)


def refuses(workload: Workload) -> str | None:
    """Return the operations that kornia lacks."""
    if workload.views == "fixmatch":
        return "its RandAugment has no random magnitude and no Cutout at a fixed size"
    return None


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    torch.set_num_threads(workload.threads)
    views = workload.view_list
    crops: tuple[Transform, ...] = ()
    if not corpus.uniform:
        crops = tuple(resized_crop(view, workload) for view in views if not isinstance(view, FixMatchView))
    augment = [kornia_view(view, workload, crop=corpus.uniform) for view in views]
    for batch in endless(Decoded(corpus.paths, crops), workload):
        pixels = batch if crops else batch * len(views)
        yield tuple(step(image) for step, image in zip(augment, pixels, strict=True))


CONTENDER = Contender(
    name="kornia",
    libraries=("kornia", "torch", "torchvision"),
    setup="DataLoader workers decode (and crop, where sizes differ); kornia on torch threads",
    differences="its own crop samples without antialiasing; float32 throughout, not clamped",
    batches=batches,
    refuses=refuses,
)
