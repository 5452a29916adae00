"""Peer: SPDL's pipeline of threads, with operations that release Python's global interpreter lock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import torch

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload
from tools.peers.torchvision_v2 import decode_file
from tools.peers.torchvision_views import tensor_views


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)  # only the pipeline's own threads work in parallel
    views = tensor_views(workload)
    order = random.Random(workload.seed)
    paths = [str(path) for path in corpus.paths]

    def source() -> Iterator[str]:
        for _ in itertools.count():
            yield from order.sample(paths, len(paths))

    def load(path: str) -> tuple[torch.Tensor, ...]:
        return views(decode_file(path))

    def load_batch(some: list[str]) -> Views:
        return tuple(torch.stack(view) for view in zip(*map(load, some), strict=True))

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .aggregate(workload.batch_size)  # a task per image would take a third more CPU time
        .pipe(load_batch, concurrency=workload.threads)
        .add_sink(4)
        .build(num_threads=workload.threads)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


CONTENDER = Contender(
    name="spdl",
    libraries=("spdl-core", "torch", "torchvision"),
    setup="PipelineBuilder, a task per batch, one thread per thread of the workload; torchvision's decoder, "
    "a fifth of the time of spdl-io's, and v2 tensor views",
    differences="",
    batches=batches,
)
