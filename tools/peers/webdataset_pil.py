"""Peer: webdataset reading a tar in worker processes, with torchvision transforms on PIL images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus, write_tar
from tools.bench.workload import Workload
from tools.peers.torchvision_views import ViewsOf, pil_views


class DecodeAndView:
    """Decode a sample's JPEG with PIL and return its views."""

    def __init__(self, views: ViewsOf) -> None:
        self.views = views

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return the views of one sample."""
        with Image.open(io.BytesIO(sample["jpg"])) as file:
            image = file.convert("RGB")
        return self.views(image)


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    import webdataset as wds

    # resampled: every worker reads the whole tar, since splitting by shards would need one tar per worker.
    dataset = wds.WebDataset(
        [str(corpus.tar)], resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node
    )
    pipeline = (
        dataset.shuffle(1000)
        .map(DecodeAndView(pil_views(workload)))
        .batched(workload.batch_size, partial=False)
    )
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workload.threads, prefetch_factor=4)
    for batch in loader:
        yield tuple(batch)


CONTENDER = Contender(
    name="webdataset",
    libraries=("webdataset", "torch", "torchvision", "pillow"),
    setup="WebLoader, one worker process per thread, batched in the workers, shuffle buffer 1000",
    differences="blur is PIL's box approximation of a Gaussian",
    batches=batches,
    prepare=write_tar,
)
