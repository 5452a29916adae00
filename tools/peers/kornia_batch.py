"""Peer: kornia's batched augmentations after a DataLoader that decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import MEAN, STD, BarlowView, CropFlip, FixMatchView, View, Workload
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
    augment = [_augment(view, workload, crop=corpus.uniform) for view in views]
    for batch in endless(Decoded(corpus.paths, crops), workload):
        pixels = batch if crops else batch * len(views)
        yield tuple(step(image) for step, image in zip(augment, pixels, strict=True))


def _augment(view: View, workload: Workload, crop: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    from kornia import augmentation as K

    assert isinstance(view, CropFlip)
    steps: list[Any] = []
    if crop:
        side = (workload.resolution, workload.resolution)
        resample = workload.interpolation.upper()
        steps.append(
            K.RandomResizedCrop(side, view.scale, view.ratio, resample=resample, cropping_mode="slice")
        )
    steps.append(K.RandomHorizontalFlip(p=view.flip))
    if isinstance(view, BarlowView):
        steps += _barlow(view, workload)
    chain = torch.nn.Sequential(*steps)

    @torch.inference_mode()
    def augment(pixels: torch.Tensor) -> torch.Tensor:
        views: torch.Tensor = chain(pixels.to(torch.float32).div_(255))
        return views.mul_(255).round_().clamp_(0, 255).to(torch.uint8) if workload.is_uint8 else views

    return augment


def _barlow(view: BarlowView, workload: Workload) -> list[Any]:
    from kornia import augmentation as K

    size = (workload.blur_size, workload.blur_size)
    steps = [
        K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter),
        K.RandomGrayscale(p=view.gray),
        K.RandomGaussianBlur(size, view.sigma, p=view.blur),
    ]
    if view.solarize > 0:
        threshold = (view.threshold / 255, view.threshold / 255)
        steps.append(K.RandomSolarize(threshold, (0.0, 0.0), p=view.solarize))
    return [*steps, K.Normalize(torch.tensor(MEAN), torch.tensor(STD))]


CONTENDER = Contender(
    name="kornia",
    libraries=("kornia", "torch", "torchvision"),
    setup="DataLoader workers decode (and crop, where sizes differ); kornia on torch threads",
    differences="its own crop samples without antialiasing; float32 throughout, not clamped",
    batches=batches,
    refuses=refuses,
)
