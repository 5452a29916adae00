"""Upper limits of a loader's speed: decoding alone, and writing batches alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from loaders.backends.decoding import Decoder, EncodedRows
from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload

_GROUP = 8  # images that are decoded in one call


def decode_batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Decode the images from memory in threads, as the cpu backend does, and drop the pixels."""
    paths = corpus.paths
    groups = [_encoded(paths[first : first + _GROUP]) for first in range(0, len(paths), _GROUP)]
    most = max(int(rows.pixel_bytes.sum()) for rows in groups)
    local = threading.local()
    per_batch = max(1, workload.batch_size // _GROUP)

    def work(batch: int) -> None:
        if not hasattr(local, "decoder"):
            local.decoder, local.planes = Decoder(), np.empty(most, np.uint8)
        for number in range(batch * per_batch, (batch + 1) * per_batch):
            rows = groups[number % len(groups)]
            decoded = local.decoder.decode(rows, 0, np.zeros(len(rows.sizes), np.int64), local.planes)
            if decoded < len(rows.sizes):
                raise ValueError(local.decoder.reason(rows, decoded))

    return _in_threads(work, workload.threads)


def _encoded(paths: Sequence[Path]) -> EncodedRows:
    data = [np.fromfile(path, np.uint8) for path in paths]
    sizes = np.array([simplejpeg.decode_jpeg_header(one)[:2] for one in data], np.int64)
    return EncodedRows.of_jpegs(data, sizes[:, 0].copy(), sizes[:, 1].copy())


def copy_batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Copy a batch of constant views in threads, so that only the speed of memory limits the rate."""
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
    libraries=("turbojpeg",),
    setup="the decoding of the cpu backend alone, on bytes in memory, one thread per thread of the workload",
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
