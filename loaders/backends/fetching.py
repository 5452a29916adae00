"""Threads that fetch the shards of packs in a store ahead of their use."""

from __future__ import annotations

from collections.abc import Iterable

from loaders.backends.threads import WorkerPool
from loaders.packs.stores.remote_pack import RemotePack


class Fetching:
    """Threads that fetch shards for one loader, a group per remote pack, started when first needed."""

    def __init__(self) -> None:
        self._pools: dict[int, tuple[RemotePack, WorkerPool]] = {}

    def want(self, pack: RemotePack, stream: int, shards: Iterable[int], begun: set[int]) -> None:
        """Keep these shards cached for a stream, and fetch those not in `begun`, in the order given."""
        if id(pack) not in self._pools:
            pack.cache.store.enter()
            threads = pack.cache.store.options.num_fetchers
            self._pools[id(pack)] = pack, WorkerPool(threads, "sluice-fetch")
        names = {shard: pack.shard_files[shard].path for shard in shards}
        pack.cache.protect((id(self), stream), frozenset(names.values()))
        for shard in names:
            if shard not in begun:
                self._pools[id(pack)][1].submit(pack.shard_map, shard)

    def stop(self) -> None:
        """Make reads give up after their current request, unless another loader reads from the same store."""
        for pack, _ in list(self._pools.values()):
            pack.cache.store.stop()

    def close(self, timeout_s: float) -> None:
        """End the threads. Call this once no other thread of the loader reads from a store."""
        for pack, pool in list(self._pools.values()):
            pool.close(timeout_s)
            pack.cache.release(id(self))
            pack.cache.store.leave()
