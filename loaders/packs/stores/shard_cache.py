"""Whole shards of remote packs on the local disk: verified, bounded in bytes, shared between processes.

Processes share only the folder. A shard with its final name is whole and was checked against its SHA-256; its
modification time is the time at which `fetch` last returned the shard.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from loaders.common.errors import UserError
from loaders.common.files import PARTIAL_SUFFIX, partial_path, publish
from loaders.common.locks import locked
from loaders.packs.manifest import SHARDS_FOLDER, FileInfo
from loaders.packs.stores.store import Store

_LOCKS_FOLDER = "locks"
_POLL_S = 0.05


class ShardCache:
    """The local copies of one remote pack's shards.

    Args:
        folder: folder of this pack, inside the cache folder.
        cache_bytes: limit in bytes for all shards in the cache folder, of this pack and of others.
    """

    def __init__(self, folder: Path, store: Store, cache_bytes: int) -> None:
        self.folder = folder
        self.store = store
        self.cache_bytes = cache_bytes
        self._protected: dict[tuple[int, int], frozenset[str]] = {}
        self._under_way: dict[str, Future[Path]] = {}
        self._lock = threading.Lock()
        for inside in (SHARDS_FOLDER, _LOCKS_FOLDER):
            (folder / inside).mkdir(parents=True, exist_ok=True)

    def protect(self, owner: tuple[int, int], names: frozenset[str]) -> None:
        """Set which shards this process removes last on behalf of `owner` (loader, stream)."""
        with self._lock:
            self._protected[owner] = names

    def release(self, loader: int) -> None:
        """Drop the protection of all shards that a loader protects."""
        with self._lock:
            for owner in [owner for owner in self._protected if owner[0] == loader]:
                del self._protected[owner]

    def is_protected(self, name: str) -> bool:
        """Tell whether any owner protects a shard."""
        with self._lock:
            return any(name in names for names in self._protected.values())

    def holds(self, info: FileInfo) -> bool:
        """Tell whether the cache holds a shard."""
        try:
            return (self.folder / SHARDS_FOLDER / info.path).stat().st_size == info.size_bytes
        except FileNotFoundError:
            return False

    def fetch(self, info: FileInfo) -> Path:
        """Return the path of a shard's local copy, fetched if needed; concurrent callers share one fetch.

        Raises:
            UserError: the store lacks the shard or refuses access, or the disk or the cache has no room.
            StoreError: the store did not deliver.
        """
        mine: Future[Path] = Future()
        with self._lock:
            running = self._under_way.setdefault(info.path, mine)
        if running is not mine:
            return running.result()
        try:
            path = self._fetch(info)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(path)
            return path
        finally:
            with self._lock:
                del self._under_way[info.path]

    def _fetch(self, info: FileInfo) -> Path:
        path = self.folder / SHARDS_FOLDER / info.path
        try:
            with locked(self.folder / _LOCKS_FOLDER / info.path):
                if self.holds(info):
                    with suppress(FileNotFoundError):  # removed by another process: the caller fetches again
                        os.utime(path)
                else:
                    self._fill(path, info)
        except OSError as error:
            raise UserError(
                f"cache {self.folder}: cannot keep {info.path} ({error.strerror}); make room, or give "
                "another cache_dir or fewer cache_bytes"
            ) from None
        return path

    def _fill(self, path: Path, info: FileInfo) -> None:
        """Download a shard; the caller holds the shard's lock."""
        for stale in path.parent.glob(f"{info.path}.*{PARTIAL_SUFFIX}"):
            stale.unlink(missing_ok=True)  # left by a killed process, since this process has the lock
        partial = partial_path(path)
        try:
            self._reserve(partial, info)
            with open(partial, "r+b") as file:
                self.store.download(f"{SHARDS_FOLDER}/{info.path}", info, file)
                file.flush()
                os.fsync(file.fileno())
            with locked(self.folder.parent / "lock"):  # no process may list the folder during the renaming
                publish(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _reserve(self, partial: Path, info: FileInfo) -> None:
        """Make room, and reserve it with a file of the full size, so that no other fetch takes it."""
        root = self.folder.parent
        while True:
            with locked(root / "lock"):
                excess = self._make_room(root, info.size_bytes)
                if excess <= 0:
                    with open(partial, "wb") as file:
                        file.truncate(info.size_bytes)
                    return
                if not list(root.glob(f"*/{SHARDS_FOLDER}/*{PARTIAL_SUFFIX}")):
                    raise UserError(
                        f"cache {root}: expected {info.size_bytes} bytes for {info.path}, found cache_bytes "
                        f"{self.cache_bytes}; raise it"
                    )
            time.sleep(_POLL_S)  # wait for the fetches that hold the rest of the room

    def _make_room(self, root: Path, size_bytes: int) -> int:
        """Free `size_bytes` by removing the longest unused shards, protected last; return bytes lacking."""
        files = _by_last_use(root)
        excess = sum(size for _, size in files) + size_bytes - self.cache_bytes
        for path, size in sorted(files, key=lambda file: self._is_mine(file[0])):
            if excess <= 0:
                break
            if path.suffix != PARTIAL_SUFFIX or self._is_abandoned(path):
                path.unlink(missing_ok=True)
                excess -= size
        return excess

    def _is_mine(self, path: Path) -> bool:
        return path.parent.parent == self.folder and self.is_protected(path.name)

    def _is_abandoned(self, partial: Path) -> bool:
        """Tell whether the process that wrote a partial file has ended, so that its lock is free."""
        name = partial.name.rsplit(".", 2)[0]
        try:
            with locked(partial.parent.parent / _LOCKS_FOLDER / name, "at work"):
                return True
        except UserError:
            return False


def _by_last_use(root: Path) -> list[tuple[Path, int]]:
    """Return all shards of a cache folder, partial ones too, with their sizes, the longest unused first."""
    found = []
    for path in root.glob(f"*/{SHARDS_FOLDER}/*"):
        with suppress(FileNotFoundError):  # another fetch removed a partial file meanwhile
            stat = path.stat()
            found.append((stat.st_mtime_ns, path, stat.st_size))
    return [(path, size) for _, path, size in sorted(found)]
