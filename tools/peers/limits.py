"""The limits of a loader: decoding alone, and writing batches alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload


def decode_batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Decode every image once from memory with libjpeg-turbo, in threads, and throw the pixels away."""
    import simplejpeg

    images = [path.read_bytes() for path in corpus.paths]

    def work(batch: int) -> None:
        start = batch * workload.batch_size
        for number in range(start, start + workload.batch_size):
            simplejpeg.decode_jpeg(images[number % len(images)], colorspace="RGB")

    return _in_threads(work, workload.threads)


def copy_batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Write every view's bytes once into a batch, in threads: the price of memory alone."""
    shape = (len(workload.view_list), workload.batch_size, 3, workload.side, workload.side)
    dtype = np.uint8 if workload.is_uint8 else np.float32
    source = np.ones(shape, dtype)
    slots = [np.empty_like(source) for _ in range(4 * workload.threads)]

    def work(batch: int) -> None:
        np.copyto(slots[batch % len(slots)], source)

    return _in_threads(work, workload.threads)


def _in_threads(work: Callable[[int], None], threads: int) -> Iterator[Views]:
    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Future[None]] = [pool.submit(work, batch) for batch in range(2 * threads)]
        batch = len(ahead)
        while True:
            ahead.pop(0).result()
            ahead.append(pool.submit(work, batch))
            batch += 1
            yield ()


DECODE_ONLY = Contender(
    name="decode_only",
    libraries=("simplejpeg",),
    setup="simplejpeg on bytes in memory, one thread per thread of the workload, pixels dropped",
    differences="no views",
    batches=decode_batches,
    kind="limit",
    shares_crops=True,
)
COPY_ONLY = Contender(
    name="copy_only",
    libraries=("numpy",),
    setup="one memory copy of every view of a batch, no image work",
    differences="no images",
    batches=copy_batches,
    kind="limit",
    reads_pixels=True,
    shares_crops=True,
)
