"""The backend for packs that lie in a store, or are larger than memory: the cpu backend over a block shuffle.

Shards are fetched whole, checked, and kept in a bounded cache; the shards of the window in use and of the
one after it are on their way before a row of them is asked for. Rows come in the block order of
`loaders.block_order`, which depends on seed, epoch and window alone: neither on the cache nor on the speed of
the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from loaders.batch import Batch
from loaders.block_order import BlockShuffle
from loaders.cpu import CpuRenderer
from loaders.epochs import LABELED, Pending, Renderer, Shuffle
from loaders.errors import LoaderError, UserError
from loaders.packs import Split
from loaders.packs.remote import RemotePack
from loaders.packs.store import StoreError
from loaders.threads import WorkerPool

_FEW_RANGES = 64  # more are ranges of a few rows each, which are looked up one by one
_RECENT_BATCHES = 8  # batches whose shards stay while later ones are being begun


def shards_of(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the shards that hold a split's rows, and how many rows of it each holds.

    Args:
        split: any split; its positions follow the order of its shards.

    Returns:
        shards int64 [S], increasing numbers of shards; rows int64 [S], at least 1 each.
    """
    column = split.pack.columns.shard
    if len(split.row_ranges) > _FEW_RANGES:
        shards, rows = np.unique(column[split.rows(np.arange(len(split)))], return_counts=True)
        return shards.astype(np.int64), rows.astype(np.int64)
    counts: dict[int, int] = {}
    for first, stop in split.row_ranges:
        # Rows are in the order of their shards, so a range needs its borders only.
        numbers = np.arange(int(column[first]), int(column[stop - 1]) + 1)
        starts = first + np.searchsorted(column[first:stop], numbers)
        for number, count in zip(numbers.tolist(), np.diff(np.append(starts, stop)).tolist(), strict=True):
            if count:
                counts[number] = counts.get(number, 0) + count
    return np.fromiter(counts, np.int64, len(counts)), np.fromiter(counts.values(), np.int64, len(counts))


class StreamPending:
    """A batch under way; when time runs out it says which shards were still missing."""

    def __init__(self, inner: Pending, missing: Callable[[], list[str]]) -> None:
        self._inner = inner
        self._missing = missing

    def result(self, timeout_s: float) -> Batch:
        """Wait for the batch.

        Raises:
            LoaderError: a worker failed or took too long; the store did not deliver (`StoreError`).
        """
        try:
            return self._inner.result(timeout_s)
        except StoreError:
            raise
        except LoaderError as error:
            missing = self._missing()
            if not missing:
                raise
            raise LoaderError(f"{error}; still waiting for {', '.join(missing)}") from None

    def cancel(self) -> None:
        """Drop what no thread has begun."""
        self._inner.cancel()


class Fetching:
    """Threads that fetch shards for one loader, a group per remote pack, started when first needed."""

    def __init__(self) -> None:
        self._pools: dict[int, tuple[RemotePack, WorkerPool]] = {}

    def want(self, pack: RemotePack, stream: int, shards: Iterable[int], begun: set[int]) -> None:
        """Keep these shards for a stream of the loader and fetch those not in `begun`, in this order."""
        if id(pack) not in self._pools:
            pack.cache.store.enter()
            threads = pack.cache.store.options.num_fetchers
            self._pools[id(pack)] = pack, WorkerPool(threads, "sluice-fetch")
        names = {shard: pack.shard_files[shard].path for shard in shards}
        pack.cache.protect((id(self), stream), frozenset(names.values()))
        for shard in names:
            if shard not in begun:
                self._pools[id(pack)][1].submit(pack.shard_map, shard)

    def keep_all(self, renderer: CpuRenderer) -> Renderer:
        """Return a renderer of the labelled stream: few rows, all of whose shards are kept if they fit."""
        if not isinstance(renderer.split.pack, RemotePack):
            return renderer
        shards, rows = shards_of(renderer.split)
        return StreamRenderer(renderer, self, None, shards, rows, 0, LABELED, len(shards))

    def stop(self) -> None:
        """Let whatever waits for a shard give up, with the request that is under way."""
        for pack, _ in list(self._pools.values()):
            pack.cache.store.stop()

    def close(self, timeout_s: float) -> None:
        """End the threads; called once no other thread of the loader reads from a store."""
        for pack, pool in list(self._pools.values()):
            pool.close(timeout_s)
            pack.cache.release(id(self))
            pack.cache.store.leave()


class StreamRenderer:
    """Renders batches of a remote pack's split and fetches the shards of the order ahead of them.

    Args:
        inner: the cpu backend over the same split.
        fetching: of the loader.
        shuffle: the order of training; None reads the shards in their order.
        shards: int64 [S] from `shards_of`; `rows` as well.
        seed: of the order.
        stream: of the order.
        window: shards per window.
    """

    def __init__(
        self,
        inner: CpuRenderer,
        fetching: Fetching,
        shuffle: BlockShuffle | None,
        shards: NDArray[np.int64],
        rows: NDArray[np.int64],
        seed: int,
        stream: int,
        window: int,
    ) -> None:
        assert isinstance(inner.split.pack, RemotePack)
        self.inner = inner
        self.bad_rows = inner.bad_rows
        self._pack: RemotePack = inner.split.pack
        self._fetching = fetching
        self._shuffle = shuffle
        self._shards = shards
        self._stops = np.cumsum(rows)
        self._seed, self._stream, self._window = seed, stream, window
        self._num_windows = -(-len(shards) // window)
        self._recent: deque[set[tuple[int, int]]] = deque(maxlen=_RECENT_BATCHES)
        self._begun: set[int] = set()

    def submit(
        self, positions: NDArray[np.int64], epochs: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> StreamPending:
        """Begin the batch of these positions (int64 [B]) of the split, and fetch what comes after it."""
        blocks = np.searchsorted(self._stops, positions, side="right")
        self._look_ahead(epochs, blocks)
        needed = self._shards[np.unique(blocks)].tolist()
        return StreamPending(self.inner.submit(positions, epochs, valid), lambda: self._missing(needed))

    def _look_ahead(self, epochs: NDArray[np.int64], blocks: NDArray[np.int64]) -> None:
        """Keep and fetch, as far as the cache goes: this batch's windows, those of recent ones, the next."""
        used: set[tuple[int, int]] = set()
        for epoch in np.unique(epochs).tolist():
            slot_of = np.argsort(self._order(epoch))
            slots = slot_of[np.unique(blocks[epochs == epoch])]
            used |= {(epoch, int(slot) // self._window) for slot in slots}
        self._recent.appendleft(used)
        epoch, window = max(used)
        after = (epoch, window + 1) if window + 1 < self._num_windows else (epoch + 1, 0)
        windows = dict.fromkeys(place for places in self._recent for place in sorted(places))
        kept: dict[int, None] = {}  # ordered: what is needed first is fetched first
        room = self._pack.cache.cache_bytes
        for place in [*windows, after]:
            for shard in self._window_shards(*place):
                room -= 0 if shard in kept else self._pack.shard_files[shard].size_bytes
                if room < 0:
                    break
                kept[shard] = None
        self._fetching.want(self._pack, self._stream, kept, self._begun)
        self._begun = set(kept)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the blocks of the split in the order of reading."""
        if self._shuffle is None:
            return np.arange(len(self._shards))
        return self._shuffle.plan(self._seed, epoch, self._stream).shards

    def _window_shards(self, epoch: int, window: int) -> list[int]:
        blocks = self._order(epoch)[window * self._window : (window + 1) * self._window]
        shards: list[int] = self._shards[blocks].tolist()
        return shards

    def _missing(self, shards: list[int]) -> list[str]:
        files = (self._pack.shard_files[shard] for shard in shards)
        return [f"{self._pack.url}/shards/{info.path}" for info in files if not self._pack.cache.holds(info)]


def over_stream(
    renderer: CpuRenderer, seed: int, stream: int, window: int, train: bool, fetching: Fetching
) -> tuple[Renderer, Shuffle]:
    """Put a cpu backend under the block order, and its pack's shards under prefetch where it is remote.

    Args:
        renderer: over the split.
        seed: of the order.
        stream: of the order.
        window: shards shuffled together.
        train: whether rows are shuffled at all.
        fetching: of the loader.

    Returns:
        What renders, and its order.

    Raises:
        UserError: a cache that cannot hold the shards of two windows, which a batch at a border needs.
    """
    pack = renderer.split.pack
    shards, rows = shards_of(renderer.split)
    shuffle = BlockShuffle(rows, window)
    if not isinstance(pack, RemotePack):
        return renderer, shuffle
    _check_cache(pack, shards, window)
    order = shuffle if train else None
    return StreamRenderer(renderer, fetching, order, shards, rows, seed, stream, window), shuffle


def _check_cache(pack: RemotePack, shards: NDArray[np.int64], window: int) -> None:
    sizes = sorted((pack.shard_files[shard].size_bytes for shard in shards.tolist()), reverse=True)
    needed = sum(sizes[: 2 * window])
    if needed > pack.cache.cache_bytes:
        raise UserError(
            f"cache: expected room for two windows of {window} shards ({needed} bytes), found cache_bytes "
            f"{pack.cache.cache_bytes}; raise it or lower window"
        )
