"""Objects of a remote store, fetched in blocks with time limits, retries and checksums, through fsspec.

A store may fail, stall, slow to a crawl or cut an answer short. All of these are handled alike: the block is
requested again after a pause, and after the last try an error names the URL. A downloaded object counts as
complete only if it has the known size and checksum.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import tyro

from loaders.common.checks import check_seconds, check_whole
from loaders.common.errors import LoaderError, UserError
from loaders.packs.manifest import FileInfo
from loaders.packs.stores.connect import connect, refuse_without_credentials, without_password


class StoreError(LoaderError):
    """A store did not deliver an object in all tries, or the loader was closed; the message names the URL."""


@dataclass(frozen=True)
class StoreOptions:
    """How a remote pack is read.

    Raises:
        UserError: a value out of its range.
    """

    cache_dir: Path | None = None
    """Folder for local copies; by default `sluice` in the user's cache folder."""
    cache_bytes: int = 20_000_000_000
    """Limit in bytes for the shards in the cache folder, over all packs."""
    num_fetchers: int = 4
    """Number of shards fetched at the same time."""
    tries: int = 5
    """Number of requests for a block, and of fetches of a damaged file, before giving up."""
    backoff_s: float = 0.5
    """Longest pause in seconds after the first failure; it doubles with every further failure."""
    request_timeout_s: float = 8.0
    """Time limit in seconds for one request; `block_bytes` per this time is the slowest rate allowed."""
    block_bytes: int = 4 << 20
    """Size of a request in bytes."""
    filesystem: tyro.conf.Suppress[tyro.conf.Fixed[Mapping[str, Any]]] = field(default_factory=dict)
    """Options of fsspec's file system (endpoint, credentials); never written to the files of a run."""

    def __post_init__(self) -> None:
        """Refuse values out of their ranges."""
        for name in ("cache_bytes", "num_fetchers", "tries", "block_bytes"):
            check_whole(f"store {name}", getattr(self, name), 1)
        check_seconds("store request_timeout_s", self.request_timeout_s)
        check_seconds("store backoff_s", self.backoff_s, may_be_zero=True)


class Store:
    """One pack's folder in a remote store."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        """Connect.

        Args:
            url: URL of the folder, such as "s3://bucket/packs/mine".

        Raises:
            UserError: see `connect`.
        """
        self.url = without_password(url)
        self.options = options
        self._users = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._fs, self._root = connect(url, options.filesystem)

    def read(self, name: str, start: int, stop: int, size_bytes: int | None = None) -> bytes:
        """Return bytes [start, stop) of an object; request them again if an answer fails or is cut short.

        Args:
            name: path of the object, relative to the pack.
            size_bytes: size of the object. If it is given, an answer must have the requested length or be the
                whole object; if it is None, an answer of any length is accepted.

        Returns:
            The bytes. If a server ignores ranges, there may be more of them, up to the end of the object.

        Raises:
            UserError: the object does not exist, or this user may not read it.
            StoreError: no try gave a whole answer, or the loader was closed.
        """
        last = ""
        for attempt in range(self.options.tries):
            if attempt:
                pause_s = self.options.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                self._stopped.wait(pause_s)
            if self._stopped.is_set():
                raise StoreError(f"{self.url}/{name}: the loader was closed")
            try:
                data = self._request(f"{self._root}/{name}", start, stop)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise UserError(
                    f"no object at {self.url}/{name}: check the URL and that the pack is complete"
                ) from None
            except PermissionError as error:
                raise UserError(
                    f"{self.url}/{name}: access is denied ({error}): check the credentials"
                ) from None
            except Exception as error:  # every file system has its own exceptions
                refuse_without_credentials(self.url, error)
                last = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            if size_bytes is None or len(data) == stop - start:
                return data
            if len(data) == size_bytes:
                return data[start:]
            last = f"expected {stop - start} bytes from byte {start} on, got {len(data)}"
        raise StoreError(
            f"{self.url}/{name}: no complete answer in {self.options.tries} tries ({last}); check the store "
            "and the network, or give more --store.tries and a longer --store.request-timeout-s"
        )

    def download(self, name: str, info: FileInfo, out: BinaryIO) -> None:
        """Write an object of the size in `info` to `out`; fetch it again if its SHA-256 is wrong.

        Raises:
            UserError: see `read`.
            StoreError: see `read`; or no try gave the content with the checksum in `info`.
        """
        for _ in range(self.options.tries):
            digest, position = hashlib.sha256(), 0
            out.seek(0)
            while position < info.size_bytes:
                stop = min(position + self.options.block_bytes, info.size_bytes)
                block = self.read(name, position, stop, info.size_bytes)
                digest.update(block)
                out.write(block)
                position += len(block)
            if digest.hexdigest() == info.sha256:
                return
        raise StoreError(
            f"{self.url}/{name}: content differs from its checksum in {self.options.tries} tries; upload the "
            "pack again"
        )

    def enter(self) -> None:
        """Count one more loader that reads from this store."""
        with self._lock:
            self._users += 1
            self._stopped.clear()

    def stop(self) -> None:
        """Make reads give up after their current request, unless another loader reads from this store."""
        with self._lock:
            if self._users == 1:
                self._stopped.set()

    def leave(self) -> None:
        """Count one loader less, after its reads have ended; the last one to leave undoes `stop`."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stopped.clear()

    def _request(self, path: str, start: int, stop: int) -> bytes:
        timeout_s = self.options.request_timeout_s
        if self._fs.async_impl:
            from fsspec.asyn import sync

            # fsspec's own event loop cancels the request when the time is up.
            answer = sync(self._fs.loop, self._fs._cat_file, path, start=start, end=stop, timeout=timeout_s)
        else:
            answer = _limited(lambda: self._fs.cat_file(path, start=start, end=stop), timeout_s)
        return bytes(answer)


def _limited(call: Callable[[], Any], timeout_s: float) -> Any:
    """Run `call` in a new thread and return its result; the thread is abandoned when the time is up."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    start = time.monotonic()
    threading.Thread(target=run, name="sluice-store", daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError:
        raise TimeoutError(f"no answer in {time.monotonic() - start:.1f} s") from None
