"""The benchmark's views made of kornia's augmentations of a batch, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from tools.bench.workload import MEAN, STD, BarlowView, CropFlip, View, Workload


def kornia_view(
    view: View, workload: Workload, crop: bool = True, cropping_mode: Literal["slice", "resample"] = "slice"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the augmentation of one view.

    Args:
        view: a view of crop and flip, or a view of Barlow Twins.
        workload: gives the resolution, the filter of the resize, the blur's size, and uint8 or float32.
        crop: whether to crop and resize; False if the images are crops already.
        cropping_mode: how kornia crops: "slice" image by image, "resample" all images in one warp.

    Returns:
        A function from uint8 [B, 3, H, W] to [B, 3, R, R]; random numbers are drawn for each image.
    """
    from kornia import augmentation as K

    assert isinstance(view, CropFlip)
    steps: list[Any] = []
    if crop:
        side = (workload.resolution, workload.resolution)
        resample = workload.interpolation.upper()
        steps.append(
            K.RandomResizedCrop(side, view.scale, view.ratio, resample=resample, cropping_mode=cropping_mode)
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
