"""Peer: TurboLoader's fused C++ crop and flip, on a tar of JPEG files or on its own file of stored pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus, write_tar
from tools.bench.workload import Workload


def refuses(workload: Workload) -> str | None:
    """Return the operations that TurboLoader lacks, or None."""
    match workload.views:
        case "barlow":
            return "no random grayscale, and jitter and blur cannot be drawn per image (probability, sigma)"
        case "fixmatch":
            return "no reflect-padded crop followed by RandAugment in its fast path"
        case _:
            return None


def prepare(workload: Workload, corpus: Corpus) -> None:
    """Write the epoch as one tar, and for workloads on pixels as a file of pixels, unless these exist."""
    write_tar(workload, corpus)
    pixels = _pixels(workload, corpus)
    if workload.encoding == "jpeg" or pixels.exists():
        return
    import turboloader

    size: int | tuple[int, int] = (
        workload.resolution * 6 // 5
    )  # larger than the views, as TurboLoader's documentation advises
    if corpus.uniform:
        with Image.open(corpus.paths[0]) as image:
            size = (image.height, image.width)
    partial = pixels.with_suffix(".partial.tbl")
    turboloader.preprocess_to_tbl(str(corpus.tar), str(partial), size, num_workers=workload.threads)
    partial.replace(pixels)


def _pixels(workload: Workload, corpus: Corpus) -> Path:
    return corpus.root / ("images.tbl" if corpus.uniform else f"images-{workload.resolution}.tbl")


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views; each view has its own loader, since TurboLoader decodes once per view."""
    import turboloader

    source = corpus.tar if workload.encoding == "jpeg" else _pixels(workload, corpus)
    loaders = [
        turboloader.DataLoader(
            str(source),
            batch_size=workload.batch_size,
            num_workers=workload.threads,
            shuffle=True,
            image_size=workload.resolution,
            output_format="pytorch",
            train_aug=True,
            drop_last=True,
            seed=workload.seed,
        )
        for _ in workload.view_list
    ]
    epoch = 0
    while True:
        for loader in loaders:
            loader.set_epoch(epoch)
        for batch in zip(*loaders, strict=True):
            yield tuple(view[0] for view in batch)
        epoch += 1


CONTENDER = Contender(
    name="turboloader",
    libraries=("turboloader",),
    setup="DataLoader fast path on a tar, or on a .tbl of pixels, its C++ pool bound by the cores; a second "
    "view is a second loader",
    differences="bilinear without antialiasing; float32 in [0, 1] where others give uint8; a second loader "
    "of the same seed repeats the first view; pixels of many sizes are stored at 1.2 times the view",
    batches=batches,
    refuses=refuses,
    prepare=prepare,
    reads_pixels=True,
)
