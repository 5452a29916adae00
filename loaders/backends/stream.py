"""The stream backend, for packs in a store or larger than memory: the cpu backend with a block shuffle.

Shards are fetched whole, checked, and kept in a bounded cache. Fetching the shards of a window begins while
the window before it is in use. In training, rows come in the block order of `loaders.order.blocks`, which
depends neither on the cache nor on the speed of the store.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from loaders.backends.cpu import CpuRenderer, Job
from loaders.backends.work import LABELED, Backend, Pending, Request, Work
from loaders.common.errors import UserError
from loaders.order.blocks import BlockShuffle
from loaders.packs import Split
from loaders.packs.stores.remote_pack import RemotePack

_FEW_RANGES = 64  # more ranges usually hold few rows each, so rows are then looked up one by one
_RECENT_BATCHES = 8  # recent batches whose shards stay cached, since they may still be read


def shards_of(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the shards that hold a split's rows, and the number of these rows in each shard.

    Args:
        split: any split; its positions are in the order of its shards.

    Returns:
        shards int64 [S], increasing numbers of shards; rows int64 [S], at least 1 each.
    """
    column = split.pack.columns.shard
    if len(split.row_ranges) > _FEW_RANGES:
        shards, rows = np.unique(column[split.rows(np.arange(len(split)))], return_counts=True)
        return shards.astype(np.int64), rows.astype(np.int64)
    counts: dict[int, int] = {}
    for first, stop in split.row_ranges:
        # Rows are in the order of their shards, so only the borders between shards are looked up.
        numbers = np.arange(int(column[first]), int(column[stop - 1]) + 1)
        starts = first + np.searchsorted(column[first:stop], numbers)
        for number, count in zip(numbers.tolist(), np.diff(np.append(starts, stop)).tolist(), strict=True):
            if count:
                counts[number] = counts.get(number, 0) + count
    return np.fromiter(counts, np.int64, len(counts)), np.fromiter(counts.values(), np.int64, len(counts))


class StreamBackend(Backend):
    """The cpu backend with a block shuffle, for packs in a store or larger than memory."""

    name = "stream"

    def refusal(self, work: Work) -> UserError | None:
        """Return the error for a cache without room for two windows; see `Backend`."""
        pack, window = work.split.pack, work.options.window
        if not isinstance(pack, RemotePack) or work.stream == LABELED:
            return None
        shards, _ = shards_of(work.split)
        sizes = sorted((pack.shard_files[shard].size_bytes for shard in shards.tolist()), reverse=True)
        needed = sum(sizes[: 2 * window])  # a batch at the border of two windows needs both
        if needed <= pack.cache.cache_bytes:
            return None
        return UserError(
            f"cache: expected room for two windows of {window} shards ({needed} bytes), found cache_bytes "
            f"{pack.cache.cache_bytes}; raise it or lower window"
        )

    def renderer(self, work: Work) -> CpuRenderer:
        """Return a renderer; see `Backend`.

        A labelled stream has few rows, so it is not block-shuffled; all of its shards are kept if they fit.
        """
        shards, rows = shards_of(work.split)
        shuffle = None if work.stream == LABELED else BlockShuffle(rows, work.options.window)
        is_remote = isinstance(work.split.pack, RemotePack)
        renderer = StreamRenderer(work, shuffle, shards, rows) if is_remote else CpuRenderer(work)
        if shuffle is not None:
            renderer.shuffle = shuffle
        return renderer

    def identity(self, work: Work) -> dict[str, str]:
        """Name the order by the size of its windows; see `Backend`."""
        return super().identity(work) | {"order": f"windows of {work.options.window} shards"}


class StreamRenderer(CpuRenderer):
    """Renders batches of a remote pack's split, and fetches shards ahead of the batches."""

    def __init__(
        self,
        work: Work,
        shuffle: BlockShuffle | None,
        shards: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> None:
        """Store the order and the shards; nothing is fetched yet.

        Args:
            work: work on the split of a remote pack.
            shuffle: the order of training; None keeps as many shards of the split as the cache holds.
            shards, rows: int64 [S] each, from `shards_of`.
        """
        super().__init__(work)
        assert isinstance(work.split.pack, RemotePack)
        self._pack = work.split.pack
        self._planned = shuffle if work.train else None
        self._shards = shards
        self._stops = np.cumsum(rows)
        self._window = len(shards) if shuffle is None else work.options.window
        self._num_windows = -(-len(shards) // self._window)
        self._recent: deque[set[tuple[int, int]]] = deque(maxlen=_RECENT_BATCHES)
        self._begun: set[int] = set()

    def submit(self, request: Request) -> Pending:
        """Begin a batch, and fetch its shards and those of the batches after it."""
        blocks = np.searchsorted(self._stops, request.positions, side="right")
        self._look_ahead(request.epochs, blocks)
        return super().submit(request)

    def why_late(self, job: Job) -> str:
        """Return what may hang, and which shards are still missing; see `CpuRenderer`."""
        shards = np.unique(self._pack.columns.shard[job.rows]).tolist()
        files = (self._pack.shard_files[shard] for shard in shards)
        missing = [
            f"{self._pack.url}/shards/{info.path}" for info in files if not self._pack.cache.holds(info)
        ]
        return f"{self.may_hang}; still waiting for {', '.join(missing)}" if missing else self.may_hang

    def _look_ahead(self, epochs: NDArray[np.int64], blocks: NDArray[np.int64]) -> None:
        """Keep or fetch the windows of recent batches and the next window, as far as the cache has room."""
        used: set[tuple[int, int]] = set()
        for epoch in np.unique(epochs).tolist():
            slot_of = np.argsort(self._order(epoch))
            slots = slot_of[np.unique(blocks[epochs == epoch])]
            used |= {(epoch, int(slot) // self._window) for slot in slots}
        self._recent.appendleft(used)
        epoch, window = max(used)
        after = (epoch, window + 1) if window + 1 < self._num_windows else (epoch + 1, 0)
        windows = dict.fromkeys(place for places in self._recent for place in sorted(places))
        kept: dict[int, None] = {}  # an ordered set: the shards that are needed first are fetched first
        room = self._pack.cache.cache_bytes
        for place in [*windows, after]:
            for shard in self._window_shards(*place):
                room -= 0 if shard in kept else self._pack.shard_files[shard].size_bytes
                if room < 0:
                    break
                kept[shard] = None
        self.work.crew.fetching.want(self._pack, self.work.stream, kept, self._begun)
        self._begun = set(kept)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return indices into the split's shards, int64 [S], in the order in which an epoch reads them."""
        if self._planned is None:
            return np.arange(len(self._shards))
        return self._planned.plan(self.options.seed, epoch, self.work.stream).shards

    def _window_shards(self, epoch: int, window: int) -> list[int]:
        blocks = self._order(epoch)[window * self._window : (window + 1) * self._window]
        shards: list[int] = self._shards[blocks].tolist()
        return shards
