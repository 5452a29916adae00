"""The benchmark's views made of DALI's own operators, for pipelines with conditionals on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.bench.workload import MEAN, STD, BarlowView, FixMatchView, View, Workload


def dali_view(image: Any, view: View, workload: Workload, dtype: Any) -> Any:
    """Return the node of one view: uint8 [R, R, 3], or normalised [3, R, R] in another dtype.

    Args:
        image: node of uint8 [H, W, 3], on the host or the GPU.
        workload: gives the resolution and the filter of the resize.
        dtype: DALI's dtype of the view.
    """
    from nvidia.dali import fn, types

    pixels = _pixels(image, view, workload)
    if dtype == types.UINT8:
        return pixels
    mean, std = [255 * m for m in MEAN], [255 * s for s in STD]
    return fn.crop_mirror_normalize(pixels, mean=mean, std=std, dtype=dtype, output_layout="CHW")


def interpolation(workload: Workload) -> Any:
    """Return DALI's constant for the workload's filter."""
    from nvidia.dali import types

    return types.INTERP_CUBIC if workload.interpolation == "bicubic" else types.INTERP_LINEAR


def flip(pixels: Any, probability: float) -> Any:
    """Flip each image horizontally with this probability."""
    from nvidia.dali import fn

    return fn.flip(pixels, horizontal=fn.random.coin_flip(probability=probability))


def _pixels(image: Any, view: View, workload: Workload) -> Any:
    from nvidia.dali import fn

    if isinstance(view, FixMatchView):
        return _fixmatch(image, view, workload.resolution)
    pixels = fn.random_resized_crop(
        image,
        size=[workload.resolution, workload.resolution],
        random_area=view.scale,
        random_aspect_ratio=view.ratio,
        interp_type=interpolation(workload),
        antialias=True,
    )
    pixels = flip(pixels, view.flip)
    return _barlow(pixels, view, workload) if isinstance(view, BarlowView) else pixels


def _barlow(pixels: Any, view: BarlowView, workload: Workload) -> Any:
    from nvidia.dali import fn, types

    def factor(spread: float) -> Any:
        return fn.random.uniform(range=[1 - spread, 1 + spread])

    jitter = fn.random.coin_flip(probability=view.jitter, dtype=types.BOOL)
    gray = fn.random.coin_flip(probability=view.gray, dtype=types.BOOL)
    if jitter:
        pixels = fn.color_twist(
            pixels,
            brightness=factor(view.brightness),
            contrast=factor(view.contrast),
            saturation=factor(view.saturation),
            hue=fn.random.uniform(range=[-360 * view.hue, 360 * view.hue]),
        )
    if gray:
        pixels = fn.saturation(pixels, saturation=0.0)
    pixels = _blur(pixels, view, workload)
    if view.solarize > 0:
        table = np.arange(256, dtype=np.uint8)
        table[view.threshold :] = 255 - table[view.threshold :]
        solarize = fn.random.coin_flip(probability=view.solarize, dtype=types.BOOL)
        if solarize:
            pixels = fn.lookup_table(pixels, keys=list(range(256)), values=table.tolist(), dtype=types.UINT8)
    return pixels


def _blur(pixels: Any, view: BarlowView, workload: Workload) -> Any:
    from nvidia.dali import fn, types

    sigma = fn.random.uniform(range=list(view.sigma))
    if view.blur == 1:
        return fn.gaussian_blur(pixels, sigma=sigma, window_size=workload.blur_size)
    blur = fn.random.coin_flip(probability=view.blur, dtype=types.BOOL)
    if blur:
        pixels = fn.gaussian_blur(pixels, sigma=sigma, window_size=workload.blur_size)
    return pixels


def _fixmatch(image: Any, view: FixMatchView, resolution: int) -> Any:
    from nvidia.dali import fn, types
    from nvidia.dali.auto_aug import rand_augment

    pad = int(resolution * view.padding)
    offset = fn.random.uniform(range=[-pad, pad + 1], shape=[2], dtype=types.INT32)
    pixels = fn.slice(
        flip(image, view.flip),
        offset,
        [resolution, resolution],
        axes=[0, 1],
        normalized_anchor=False,
        normalized_shape=False,
        out_of_bounds_policy="pad",
    )
    if not view.strong:
        return pixels
    pixels = rand_augment.rand_augment(
        pixels, n=view.num_ops, m=5, num_magnitude_bins=11, shape=(resolution, resolution), fill_value=127
    )
    side = int(resolution * view.cutout)
    anchor = fn.random.uniform(range=[0, resolution - side], shape=[2])
    return fn.erase(pixels, anchor=anchor, shape=[side, side], axis_names="HW", fill_value=view.cutout_fill)
