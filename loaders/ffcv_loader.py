"""The ffcv backend: FFCV's Loader walks our order on a .beton of ours, behind the common contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from loaders import order
from loaders.batch import Batch
from loaders.cpu import CpuRenderer
from loaders.epochs import UNLABELED, EpochLoader, Share
from loaders.errors import LoaderError, UserError
from loaders.ffcv_operations import ffcv_loader, iterate, operations, stop
from loaders.packs import Split

_KEPT_EPOCHS = 8  # orders remembered, so that an epoch given up early can still be told from the next one


def find_shard(split: Split) -> int:
    """Return the number of the shard that holds all of a split.

    Raises:
        UserError: the pack has another format, or the split lies in several shards.
    """
    if split.pack.manifest.shard_format != "ffcv":
        raise UserError(
            f"backend ffcv: expected a pack of format ffcv, found {split.pack.manifest.shard_format}; pack "
            "with --format ffcv, or use backend='cpu'"
        )
    shards = np.unique(split.pack.columns.shard[split.rows(np.arange(len(split)))])
    if len(shards) > 1:
        raise UserError(
            f"backend ffcv: expected split {split.name!r} in one .beton, found {len(shards)}; pack with a "
            "larger --shard-size-mb, or use backend='cpu', which reads all of them"
        )
    return int(shards[0])


def check_one_stream(splits: tuple[Split, ...]) -> None:
    """Refuse the two streams of a paired loader.

    Raises:
        UserError: more than one split.
    """
    if len(splits) > 1:
        raise UserError(
            "backend ffcv: expected one stream, since FFCV's Loader walks one order; found two; use "
            "backend='cpu', which reads the same packs"
        )


class FfcvLoader(EpochLoader):
    """Batches of one split through FFCV's own Loader.

    Args:
        renderer: the cpu backend's, for the located batches.
        batch_size: global.
        seed: of the order.
        train: see `EpochLoader`.
        share: this process's part.
        place: moves a finished batch to the device.
        close: stops the threads.
        backend: see `EpochLoader`.
        fingerprint: see `Loader`.
    """

    def __init__(
        self,
        renderer: CpuRenderer,
        batch_size: int,
        seed: int,
        train: bool,
        share: Share,
        place: Callable[[Batch], Batch],
        close: Callable[[], None],
        backend: str,
        fingerprint: dict[str, str],
    ) -> None:
        self._cpu = renderer
        split = renderer.split
        super().__init__(
            renderer, len(split), batch_size, seed, train, share, place, close, backend, fingerprint
        )
        shard = find_shard(split)
        self._first_row = int(np.searchsorted(split.pack.columns.shard, shard))
        self._wanted = (0, 0)  # epoch and first step of the epoch that begins
        self._begun: list[tuple[NDArray[np.uint64], int, int]] = []  # orders, their epochs and first steps
        self._under_way: WeakSet[Any] = WeakSet()  # FFCV's iterators
        self._rank_batch = batch_size // share.num_ranks
        self._ffcv = ffcv_loader(
            split.pack.shard_path(shard),
            self._rank_batch,
            max(1, share.prefetch),
            operations(self._render),
            self._next_order,
        )

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        self._wanted = (epoch, start_step)
        if start_step >= self.steps_per_epoch:
            return
        num_steps = 0
        try:
            for (batch,) in iterate(self._ffcv, self._share.timeout_s, self._under_way.add):
                self._check_open()
                num_steps += 1
                yield self._place(batch)
        except LoaderError:
            self._check_open()
            raise
        if num_steps < self.steps_per_epoch - start_step:
            self._check_open()  # never a short epoch
            raise LoaderError(f"FFCV ended after {num_steps} batches of {self.steps_per_epoch - start_step}")

    def close(self) -> None:
        """Stop FFCV's threads and ours; further calls do nothing."""
        if self._closed or os.getpid() != self._process:
            super().close()
            return
        self._closed = True
        for under_way in list(self._under_way):
            stop(under_way, self._share.timeout_s)
        self._close()

    def _positions(self, epoch: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        positions, valid = order.step_positions(
            step, self._num_rows, self._batch_size, self._share.rank, self._share.num_ranks, self._train
        )
        if self._train:
            positions = order.permute(positions, self._num_rows, self._seed, epoch, UNLABELED)
        return positions, valid

    def _next_order(self) -> NDArray[np.uint64]:
        """Return the samples of the epoch that begins, and remember which epoch that is."""
        epoch, first = self._wanted
        steps = range(first, self.steps_per_epoch)
        positions = np.concatenate([self._positions(epoch, step)[0] for step in steps])
        samples = (self._cpu.split.rows(positions) - self._first_row).astype(np.uint64)
        self._begun = [*self._begun[-_KEPT_EPOCHS:], (samples, epoch, first)]
        return samples

    def _render(self, places: NDArray[np.uint64], batch_indices: NDArray[Any]) -> Batch:
        """Render one batch in FFCV's thread; the slice FFCV took of the order tells epoch and step."""
        del places  # the renderer reads the same bytes through the pack, which also knows the next row
        start = batch_indices.ctypes.data
        for samples, epoch, first in self._begun:
            offset = start - samples.ctypes.data
            if 0 <= offset < samples.nbytes:
                step = first + offset // samples.itemsize // self._rank_batch
                positions, valid = self._positions(epoch, step)
                epochs = np.full(len(positions), epoch, np.int64)
                return self._cpu.submit(positions, epochs, valid).result(self._share.timeout_s)
        raise LoaderError("FFCV asked for samples of no epoch under way")
