"""Peer: a DALI CPU pipeline as in DALI's documentation, with one decode per image and one branch per view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import CropFlip, Workload
from tools.peers.dali_views import dali_view, flip, interpolation


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    from nvidia.dali import fn, pipeline_def, types

    def pipeline() -> tuple[Any, ...]:
        files = [str(path) for path in corpus.paths]
        encoded, _ = fn.readers.file(
            files=files, random_shuffle=True, initial_fill=1000, prefetch_queue_depth=2
        )
        if workload.views == "crop_flip":
            return (flip(_decode_crop(encoded, workload), 0.5),)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        dtype = types.UINT8 if workload.is_uint8 else types.FLOAT
        return tuple(dali_view(image, view, workload, dtype) for view in workload.view_list)

    built = pipeline_def(pipeline, enable_conditionals=True)(
        batch_size=workload.batch_size, num_threads=workload.threads, device_id=None, seed=workload.seed + 1
    )
    built.build()
    while True:
        yield tuple(np.asarray(view.as_tensor()) for view in built.run())


def _decode_crop(encoded: Any, workload: Workload) -> Any:
    # With a single view, DALI can decode just the region that it crops.
    from nvidia.dali import fn, types

    view = CropFlip()
    region = fn.decoders.image_random_crop(
        encoded, device="cpu", output_type=types.RGB, random_area=view.scale, random_aspect_ratio=view.ratio
    )
    size = [workload.resolution, workload.resolution]
    return fn.resize(region, size=size, interp_type=interpolation(workload), antialias=True)


CONTENDER = Contender(
    name="dali",
    libraries=("nvidia-dali-cuda130",),
    setup="CPU pipeline, file reader, one decode, conditionals so that skipped operations cost nothing",
    differences="jitter in a fixed order with contrast around middle gray; FixMatch pads with zeros and "
    "takes the middle magnitude for all operations",
    batches=batches,
)
