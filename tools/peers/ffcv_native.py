"""Peer: FFCV's own Loader on a .beton of JPEG images; it has a resized crop and a flip, and little else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import CropFlip, Workload


def refuses(workload: Workload) -> str | None:
    """Return the operations that FFCV 1.0 lacks."""
    match workload.views:
        case "barlow":
            return "no hue, grayscale, Gaussian blur or solarize"
        case "fixmatch":
            return "no RandAugment and no padded crop"
        case _:
            return None


class _Images:
    """The corpus as FFCV's writer wants it: indexed samples of (pixels, label)."""

    def __init__(self, corpus: Corpus) -> None:
        self.paths = corpus.paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        import simplejpeg

        return simplejpeg.decode_jpeg(self.paths[row].read_bytes(), colorspace="RGB"), 0


def prepare(corpus: Corpus) -> None:
    """Write the epoch as a .beton with FFCV's writer, which encodes the pixels anew at quality 90."""
    if corpus.beton.exists():
        return
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    partial = corpus.beton.with_suffix(".partial")
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(partial), fields, num_workers=2).from_indexed_dataset(_Images(corpus))
    partial.replace(corpus.beton)


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views; a second view is a second pass, since one decode gives one view."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    view = CropFlip()
    side = (workload.resolution, workload.resolution)
    decoder = RandomResizedCropRGBImageDecoder(side, scale=view.scale, ratio=view.ratio)
    loader = Loader(
        str(corpus.beton),
        batch_size=workload.batch_size,
        num_workers=workload.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=workload.seed,
        drop_last=True,
        pipelines={"image": [decoder, RandomHorizontalFlip(view.flip), ToTensor()], "label": None},
    )
    collected: list[object] = []
    while True:
        for batch in loader:
            collected.append(batch[0])
            if len(collected) == len(workload.view_list):
                yield tuple(collected)
                collected = []


CONTENDER = Contender(
    name="ffcv",
    libraries=("ffcv", "numba", "opencv-python", "opencv-python-headless"),
    setup="Loader with numba threads, operating-system cache, random order, JPEG fields; "
    "a second view is a second pass",
    differences="resizes with OpenCV's INTER_AREA; JPEG encoded anew at quality 90",
    batches=batches,
    refuses=refuses,
    prepare=prepare,
)
