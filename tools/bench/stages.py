"""Timing of each stage of a training by itself: reading, decoding, views, copying, network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.nets.backbones import build_backbone
from loaders import LoaderOptions, build_loader, open_pack
from loaders.batch import Batch
from loaders.common.cores import available_cores
from loaders.kernels.encodings import ENCODING_JPEG
from loaders.kernels.jpeg.turbojpeg import decode_jpeg
from loaders.packs import Pack, Split
from loaders.packs.image import ImagePolicy
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views.policy import ViewPolicy

_SAMPLE = 256  # at most this many images are read and decoded, which takes a few seconds
_CLASSES = 100  # the number of classes hardly matters: the last layer takes almost no time


@dataclass(frozen=True)
class Work:
    """The training whose stages are measured.

    Attributes:
        views: policy of each view of an image.
        seconds: duration after which no further image, batch or step of a stage is measured.
    """

    split: Split
    views: tuple[ViewPolicy, ...]
    backbone: str
    batch_size: int
    options: LoaderOptions
    seconds: float

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the pack to read, decode and render: at most `_SAMPLE`, evenly spaced over the split."""
        places = np.linspace(0, len(self.split) - 1, min(_SAMPLE, len(self.split)))
        return self.split.rows(np.unique(places.round().astype(np.int64)))

    @property
    def num_threads(self) -> int:
        """Threads of the loader."""
        return self.options.num_threads or available_cores()


def read_row(pack: Pack, row: int) -> bytes:
    """Return the encoded bytes of a row, read from its shard."""
    columns = pack.columns
    shard, offset, size = (int(getattr(columns, name)[row]) for name in ("shard", "offset", "size"))
    with open(pack.shard_path(shard), "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def forget(pack: Pack) -> bool:
    """Ask the system to drop the shards from the page cache; return whether it supports that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for shard in range(pack.num_shards):
        with open(pack.shard_path(shard), "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def reading(work: Work, cold: bool) -> float:
    """Return the seconds per image of reading, in `num_threads` threads; `cold` clears the page cache."""
    pack = work.split.pack
    if cold:
        forget(pack)
    return _threaded(work, lambda row: len(read_row(pack, row)))


def decoding(work: Work) -> float:
    """Return the seconds per image of decoding; images stored as pixels take no time."""
    pack = work.split.pack
    rows = work.rows[pack.columns.encoding[work.rows] == ENCODING_JPEG]
    data = {row: pack.read(row) for row in rows.tolist()}
    return _threaded(work, lambda row: decode_row(data[row]) if row in data else 0) if data else 0.0


def decode_row(data: bytes) -> int:
    """Decode one image; return its height."""
    return len(decode_jpeg(np.frombuffer(data, np.uint8)))


def _threaded(work: Work, task: Callable[[int], int]) -> float:
    start = time.perf_counter()

    def in_time(row: int) -> int | None:  # the pool takes all rows at once
        return None if time.perf_counter() > start + work.seconds else task(row)

    with ThreadPoolExecutor(work.num_threads) as pool:
        done = sum(found is not None for found in pool.map(in_time, work.rows.tolist()))
    return (time.perf_counter() - start) / max(1, done)


def rendering(work: Work, scratch: Path) -> float:
    """Return the seconds per image of rendering all views, by the loader on a pack of decoded images."""
    folder = scratch / "pixels"
    chosen = work.split.pack.pool(work.split.pack.splits).take(np.sort(work.rows))
    images = scratch / "images"
    images.mkdir(parents=True)
    for row in chosen.rows(np.arange(len(chosen))).tolist():
        suffix = "jpg" if work.split.pack.columns.encoding[row] == ENCODING_JPEG else "ppm"
        (images / f"{row}.{suffix}").write_bytes(_file_of(work.split.pack, row))
    splits = parse_splits([f"all={images}"])
    pack_dataset(PackOptions(splits, folder, policy=ImagePolicy(encoding="raw"), workers=work.num_threads))
    raw = replace(work, split=open_pack(folder).split("all"))
    return loading(raw)


def _file_of(pack: Pack, row: int) -> bytes:
    data = pack.read(row)
    if pack.columns.encoding[row] == ENCODING_JPEG:
        return data
    return b"P6\n%d %d\n255\n" % (pack.columns.width[row], pack.columns.height[row]) + data


def loading(work: Work) -> float:
    """Return the seconds per image of the loader by itself: reading, decoding and views together."""
    return _through(replace(work, options=replace(work.options, device="cpu")), lambda batch: None)


def _through(work: Work, step: Callable[[Batch], None]) -> float:
    """Return the seconds per image over batches, without the first ones, which the loader has prefetched."""
    size = min(work.batch_size, len(work.split))
    with build_loader(work.split, work.views, size, options=work.options) as loader:
        batches = (batch for epoch in count() for batch in loader.epoch(epoch))
        for batch in islice(batches, work.options.prefetch + 1):
            step(batch)
        _wait(work)
        start, images = time.perf_counter(), 0
        for batch in batches:
            step(batch)
            images += len(batch.index)
            if time.perf_counter() > start + work.seconds:
                break
        _wait(work)  # only at the end: a wait in every step would keep a GPU from overlapping its work
        return (time.perf_counter() - start) / images


def copying(work: Work) -> float:
    """Return the seconds per image of copying a batch's views to the device; 0 if the device is the CPU."""
    device = torch.device(work.options.device)
    if device.type == "cpu":
        return 0.0
    views = [torch.empty(work.batch_size, 3, v.resolution, v.resolution).pin_memory() for v in work.views]
    return _repeated(lambda: [view.to(device, non_blocking=True) for view in views], work)


class Step:
    """A training step of a network on all views: forward, backward, SGD."""

    def __init__(self, work: Work) -> None:
        """Build the network on the device."""
        self.device = torch.device(work.options.device)
        backbone = build_backbone(work.backbone, work.views[0].resolution)
        self.network = nn.Sequential(backbone, nn.Linear(int(backbone.num_features), _CLASSES))  # type: ignore[arg-type]
        self.network.to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4)

    def __call__(self, views: Sequence[torch.Tensor]) -> None:
        """Train on one batch of views."""
        self.network.train()
        loss = sum(self.network(view.to(self.device)).square().mean() for view in views)
        assert isinstance(loss, torch.Tensor)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def training(work: Work, step: Step) -> float:
    """Return the seconds per image of training steps that all use one batch of random numbers."""
    views = [
        torch.randn(work.batch_size, 3, v.resolution, v.resolution, device=step.device) for v in work.views
    ]
    return _repeated(lambda: step(views), work)


def together(work: Work, step: Step) -> float:
    """Return the seconds per image of training steps on the loader's batches."""
    return _through(work, lambda batch: step(batch.views))


def _repeated(call: Callable[[], object], work: Work) -> float:
    call()  # the first call compiles and allocates memory
    _wait(work)
    start, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() < start + work.seconds:
        call()
        _wait(work)
        steps += 1
    return (time.perf_counter() - start) / (steps * work.batch_size)


def _wait(work: Work) -> None:
    if torch.device(work.options.device).type == "cuda":
        torch.cuda.synchronize()
