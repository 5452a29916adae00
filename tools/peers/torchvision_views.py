"""The benchmark's views made of torchvision transforms, on PIL images and on tensors, for several peers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode, v2

from tools.bench.workload import MEAN, STD, BarlowView, CropFlip, FixMatchView, TileView, View, Workload

Transform = Callable[[Any], torch.Tensor]
ViewsOf = Callable[[Any], tuple[torch.Tensor, ...]]


class PilBlur:
    """Gaussian blur of a PIL image with a random sigma, as in the code of the Barlow Twins authors."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur one image."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


class PilSolarize:
    """Solarization of a PIL image."""

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold

    def __call__(self, image: Image.Image) -> Image.Image:
        """Invert the pixels at or above the threshold."""
        return ImageOps.solarize(image, self.threshold)


class RandomMagnitudes:
    """RandAugment that draws a magnitude for each operation; torchvision's has one magnitude for all."""

    def __init__(self, num_ops: int, num_magnitudes: int) -> None:
        bins = num_magnitudes + 1
        self.choices = [v2.RandAugment(1, level, bins, fill=127) for level in range(1, bins)]
        self.num_ops = num_ops

    def __call__(self, image: Any) -> Any:
        """Apply `num_ops` random operations to a PIL image or uint8 tensor."""
        for _ in range(self.num_ops):
            image = random.choice(self.choices)(image)
        return image


class EachView:
    """Makes each view of an image by its own transform."""

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> tuple[torch.Tensor, ...]:
        """Return the views of an image."""
        return tuple(transform(image) for transform in self.transforms)


class FourTurns:
    """Makes one view and rotates it by 0, 1, 2 and 3 quarter turns."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[torch.Tensor, ...]:
        """Return the four views of an image."""
        view = self.transform(image)
        return tuple(torch.rot90(view, turns, (-2, -1)) for turns in range(4))


class GridOfTiles:
    """Makes a resized crop and cuts standardised tiles from it, each at a random place in its cell."""

    def __init__(self, transform: Transform, tile: TileView, cell: int, side: int) -> None:
        self.transform, self.tile, self.cell, self.side = transform, tile, cell, side

    def __call__(self, image: Any) -> tuple[torch.Tensor, ...]:
        """Return the tiles of an image, row by row."""
        whole = self.transform(image)
        return tuple(self._cut(whole, number) for number in range(self.tile.grid**2))

    def _cut(self, whole: torch.Tensor, number: int) -> torch.Tensor:
        top, left = (
            place * self.cell + random.randint(0, self.cell - self.side)
            for place in divmod(number, self.tile.grid)
        )
        tile = whole[:, top : top + self.side, left : left + self.side]
        mean, std = tile.mean((1, 2), keepdim=True), tile.std((1, 2), keepdim=True, correction=0)
        return (tile - mean) / (std + self.tile.eps)


def pil_views(workload: Workload) -> ViewsOf:
    """Return a transform from an RGB PIL image to all its views, [3, R, R] each."""
    return _views(workload, on_pil=True)


def tensor_views(workload: Workload) -> ViewsOf:
    """Return a transform from an image, uint8 [3, H, W], to all its views, [3, R, R] each."""
    return _views(workload, on_pil=False)


def _views(workload: Workload, on_pil: bool) -> ViewsOf:
    first = workload.view_list[0]
    if workload.views == "rotations":
        return FourTurns(_compose(first, workload, on_pil))
    if isinstance(first, TileView):
        crop = v2.RandomResizedCrop(
            workload.resolution * first.grid, first.scale, first.ratio, antialias=True
        )
        pixels = [v2.PILToTensor()] if on_pil else []
        whole = v2.Compose([crop, *pixels, v2.ToDtype(torch.float32, scale=True)])
        return GridOfTiles(whole, first, workload.resolution, workload.side)
    return EachView(tuple(_compose(view, workload, on_pil) for view in workload.view_list))


def resized_crop(view: CropFlip, workload: Workload) -> v2.Transform:
    """Return the antialiased random resized crop of a view."""
    mode = InterpolationMode.BICUBIC if workload.interpolation == "bicubic" else InterpolationMode.BILINEAR
    return v2.RandomResizedCrop(
        workload.resolution, scale=view.scale, ratio=view.ratio, interpolation=mode, antialias=True
    )


def _compose(view: View, workload: Workload, on_pil: bool) -> Transform:
    assert not isinstance(view, TileView)
    if isinstance(view, FixMatchView):
        steps = _fixmatch_steps(view, workload.resolution)
    elif isinstance(view, BarlowView):
        steps = _barlow_steps(view, workload, on_pil)
    else:
        steps = [resized_crop(view, workload), v2.RandomHorizontalFlip(view.flip)]
    if on_pil:
        steps.append(v2.PILToTensor())
    if not workload.is_uint8:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if isinstance(view, FixMatchView) and view.strong:
        steps.append(_cutout(view))
    composed: Transform = v2.Compose(steps)
    return composed


def _barlow_steps(view: BarlowView, workload: Workload, on_pil: bool) -> list[Any]:
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    blur: Any = PilBlur(view.sigma) if on_pil else v2.GaussianBlur(workload.blur_size, view.sigma)
    solarize: Any = PilSolarize(view.threshold) if on_pil else v2.RandomSolarize(view.threshold, p=1.0)
    return [
        resized_crop(view, workload),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([jitter], view.jitter),
        v2.RandomGrayscale(view.gray),
        *_sometimes(blur, view.blur),
        *_sometimes(solarize, view.solarize),
    ]


def _fixmatch_steps(view: FixMatchView, resolution: int) -> list[Any]:
    pad = int(resolution * view.padding)
    steps = [
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomCrop(resolution, padding=pad, padding_mode="reflect"),
    ]
    return [*steps, RandomMagnitudes(view.num_ops, view.num_magnitudes)] if view.strong else steps


def _cutout(view: FixMatchView) -> v2.Transform:
    fill = [(view.cutout_fill / 255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    area = view.cutout**2
    return v2.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0), value=fill)


def _sometimes(step: Any, probability: float) -> list[Any]:
    if probability == 0:
        return []
    return [step] if probability == 1 else [v2.RandomApply([step], probability)]
