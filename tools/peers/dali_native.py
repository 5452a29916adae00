"""Peer: a DALI CPU pipeline in the style of its documentation: one decode, one branch per view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import MEAN, STD, BarlowView, CropFlip, FixMatchView, View, Workload


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    from nvidia.dali import fn, pipeline_def, types

    mean, std = [255 * m for m in MEAN], [255 * s for s in STD]

    def pipeline() -> tuple[Any, ...]:
        files = [str(path) for path in corpus.paths]
        encoded, _ = fn.readers.file(
            files=files, random_shuffle=True, initial_fill=1000, prefetch_queue_depth=2
        )
        if workload.views == "crop_flip":
            return (_flip(_decode_crop(encoded, workload), 0.5),)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        views = []
        for view in workload.view_list:
            pixels = _view(image, view, workload)
            if not workload.is_uint8:
                pixels = fn.crop_mirror_normalize(
                    pixels, mean=mean, std=std, dtype=types.FLOAT, output_layout="CHW"
                )
            views.append(pixels)
        return tuple(views)

    built = pipeline_def(pipeline, enable_conditionals=True)(
        batch_size=workload.batch_size, num_threads=workload.threads, device_id=None, seed=workload.seed + 1
    )
    built.build()
    while True:
        yield tuple(np.asarray(view.as_tensor()) for view in built.run())


def _interpolation(workload: Workload) -> Any:
    from nvidia.dali import types

    return types.INTERP_CUBIC if workload.interpolation == "bicubic" else types.INTERP_LINEAR


def _flip(pixels: Any, probability: float) -> Any:
    from nvidia.dali import fn

    return fn.flip(pixels, horizontal=fn.random.coin_flip(probability=probability))


def _decode_crop(encoded: Any, workload: Workload) -> Any:
    # With a single view DALI decodes only the region it crops.
    from nvidia.dali import fn, types

    view = CropFlip()
    region = fn.decoders.image_random_crop(
        encoded, device="cpu", output_type=types.RGB, random_area=view.scale, random_aspect_ratio=view.ratio
    )
    size = [workload.resolution, workload.resolution]
    return fn.resize(region, size=size, interp_type=_interpolation(workload), antialias=True)


def _view(image: Any, view: View, workload: Workload) -> Any:
    from nvidia.dali import fn

    if isinstance(view, FixMatchView):
        return _fixmatch(image, view, workload.resolution)
    pixels = fn.random_resized_crop(
        image,
        size=[workload.resolution, workload.resolution],
        random_area=view.scale,
        random_aspect_ratio=view.ratio,
        interp_type=_interpolation(workload),
        antialias=True,
    )
    pixels = _flip(pixels, view.flip)
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
        _flip(image, view.flip),
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


CONTENDER = Contender(
    name="dali",
    libraries=("nvidia-dali-cuda130",),
    setup="CPU pipeline, file reader, one decode, conditionals so that skipped operations cost nothing",
    differences="jitter in a fixed order with contrast around middle gray; FixMatch pads with zeros and "
    "takes the middle magnitude for all operations",
    batches=batches,
)
