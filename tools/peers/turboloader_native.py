"""Peer: TurboLoader's fused C++ pass on a tar: resized crop and flip, decoding only the crop."""

from __future__ import annotations

from collections.abc import Iterator

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus, write_tar
from tools.bench.workload import Workload


def refuses(workload: Workload) -> str | None:
    """Return the operations that TurboLoader lacks."""
    match workload.views:
        case "barlow":
            return "no random grayscale, and jitter and blur cannot be drawn per image (probability, sigma)"
        case "fixmatch":
            return "no reflect-padded crop followed by RandAugment in its fast path"
        case _:
            return None


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views; each view is a loader of its own, since one decode gives one view."""
    import turboloader

    loaders = [
        turboloader.DataLoader(
            str(corpus.tar),
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
    setup="DataLoader fast path on a tar, its C++ pool bound by the cores; a second view is a second loader",
    differences="bilinear without antialiasing; float32 in [0, 1] where others give uint8; a second loader "
    "of the same seed repeats the first view",
    batches=batches,
    refuses=refuses,
    prepare=write_tar,
)
