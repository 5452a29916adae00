"""Peer: FFCV's own Loader on a .beton of JPEG images or pixels, with a resized crop and a flip."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus, write_beton
from tools.bench.workload import CropFlip, Workload


def refuses(workload: Workload) -> str | None:
    """Return the operations that FFCV 1.0 lacks, or None."""
    match workload.views:
        case "barlow":
            return "no hue, grayscale, Gaussian blur or solarize"
        case "fixmatch":
            return "no RandAugment and no padded crop"
        case _:
            return None


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views. FFCV decodes once per view: a second view is the next batch (other images)."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    view = CropFlip()
    side = (workload.resolution, workload.resolution)
    decoder = RandomResizedCropRGBImageDecoder(side, scale=view.scale, ratio=view.ratio)
    loader = Loader(
        str(next((corpus.beton_pack(workload.encoding) / "shards").glob("*.beton"))),
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
    setup="Loader with numba threads, operating-system cache, random order; a second view is a second pass",
    differences="resizes with OpenCV's INTER_AREA",
    batches=batches,
    refuses=refuses,
    prepare=write_beton,
    reads_pixels=True,
)
