"""Peer: LitData's streaming dataset on local chunks of JPEG bytes, with torchvision v2 views."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

import torch

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload
from tools.peers.torchvision_v2 import decode
from tools.peers.torchvision_views import ViewsOf, tensor_views


def read_image(path: str) -> bytes:
    """Return the bytes of one file, which become a sample of the dataset."""
    with open(path, "rb") as file:
        return file.read()


def prepare(workload: Workload, corpus: Corpus) -> None:
    """Write the epoch as LitData chunks of 64 MB, unless they exist."""
    if corpus.litdata.exists():
        return
    import litdata

    partial = corpus.litdata.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    inputs = [str(path) for path in corpus.paths]
    litdata.optimize(read_image, inputs, str(partial), chunk_bytes="64MB", num_workers=2, verbose=False)
    partial.replace(corpus.litdata)


def views_of_bytes(views: ViewsOf, encoded: bytes) -> tuple[torch.Tensor, ...]:
    """Decode one sample's bytes and return its views."""
    return views(decode(encoded))


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    import litdata

    transform = partial(views_of_bytes, tensor_views(workload))
    dataset = litdata.StreamingDataset(str(corpus.litdata), shuffle=True, drop_last=True, transform=transform)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=workload.batch_size,
        num_workers=workload.threads,
        persistent_workers=True,
        prefetch_factor=4,
    )
    while True:
        for batch in loader:
            yield tuple(batch)


CONTENDER = Contender(
    name="litdata",
    libraries=("litdata", "torch", "torchvision"),
    setup="StreamingDataLoader on local 64 MB chunks, one worker process per thread, torchvision v2 views",
    differences="",
    batches=batches,
    prepare=prepare,
)
