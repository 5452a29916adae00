"""Peer: kornia's augmentations on batches from a DataLoader that decodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import FixMatchView, Workload
from tools.peers.kornia_views import kornia_view
from tools.peers.torchvision_pil import Files, endless
from tools.peers.torchvision_v2 import decode_file
from tools.peers.torchvision_views import Transform, resized_crop


def crop_all(crops: tuple[Transform, ...], image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return one crop of the image per view, or the image itself if there are no crops.

    Images of different sizes must be cropped before they can form a batch.
    """
    image = image.contiguous()
    return tuple(crop(image) for crop in crops) or (image,)


def refuses(workload: Workload) -> str | None:
    """Return the operations that kornia lacks, or None."""
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
    for batch in endless(Files(corpus.paths, decode_file, partial(crop_all, crops)), workload):
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
