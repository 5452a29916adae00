"""The ranks of a host, connected while they load a split together; no process group takes part.

A loader may be built in any thread and on some ranks alone, where a collective could meet those of training.
So each rank is connected with the host's rank 0 by a socket that has its name from the kernel (Linux's
abstract names): nothing stands on the disk, an earlier run leaves nothing behind, and a rank that is killed
closes its end.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Literal

from loaders.common.errors import LoaderError
from loaders.options import LoaderOptions

_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")
_LAST_WAIT_S = 5.0  # short, since a launcher learns of a rank's failure when the rank has ended


def local_ranks(options: LoaderOptions) -> tuple[int, int]:
    """Return this process's number among the ranks of its host, and how many there are.

    torchrun and accelerate say so; it is (0, 1) where no launcher started the loader's ranks.
    """
    try:
        rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    launched = os.environ.get("RANK", str(options.rank)) == str(options.rank)
    return (rank, size) if launched and 0 <= rank < size <= options.num_ranks else (0, 1)


class RankFailed(LoaderError):
    """Another rank of this host cannot do its part."""

    def __init__(self, rank: int, why: str) -> None:
        """Say which rank, and in a clause why."""
        super().__init__(f"backend resident: rank {rank} of this host {why}")
        self.rank, self.why = rank, why


@contextmanager
def meet(options: LoaderOptions, *facts: object) -> Iterator[LocalRanks]:
    """Connect the ranks of this host that load the same split; an error of one ends all.

    Args:
        options: of the loader.
        facts: what the ranks have in common.
    """
    rank, size = local_ranks(options)
    ranks = LocalRanks(rank, size, options.timeout_s)
    name = repr([os.getuid(), size, *map(os.environ.get, _LAUNCH), *facts])
    try:
        ranks.join(b"\0sluice-" + hashlib.sha256(name.encode()).hexdigest()[:32].encode())
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        ranks.close()


class LocalRanks:
    """This rank's connections: with rank 0, or of rank 0 with all others.

    Attributes:
        rank: of this process on the host.
        size: number of the host's ranks.
    """

    def __init__(self, rank: int, size: int, limit_s: float) -> None:
        """Begin without connections; a rank that says nothing for twice `limit_s` is given up."""
        self.rank, self.size = rank, size
        self._limit_s, self._stays = limit_s, False
        self._others: dict[Connection, int] = {}
        self._values: dict[int, Any] = {}
        self._heard: dict[int, float] = {}
        self._said = time.monotonic()

    def join(self, address: bytes) -> None:
        """Wait until the ranks are connected, at most for the time limit.

        Raises:
            RankFailed: a rank did not come.
        """
        deadline = time.monotonic() + self._limit_s
        while len(self._others) < (1 if self.rank else self.size - 1):
            if time.monotonic() > deadline:
                missing = min(set(range(self.size)) - {self.rank, *self._others.values()})
                raise RankFailed(
                    missing,
                    f"did not come within {self._limit_s:g} s to load its part of a split; build the same "
                    "loaders on every rank, or raise timeout_s if it is only slow",
                )
            with socket.socket(socket.AF_UNIX) as end, suppress(OSError):  # none is there, or none comes
                if self.rank:
                    end.connect(address)
                    hub = _trusted(end)
                    self._others[hub] = 0
                    hub.send(self.rank)
                    return
                end.bind(address)
                end.listen(self.size)
                self._welcome(end, deadline)
            time.sleep(0.01)

    def _welcome(self, door: socket.socket, deadline: float) -> None:
        while len(self._others) < self.size - 1:
            door.settimeout(max(0.001, deadline - time.monotonic()))
            with door.accept()[0] as end, suppress(ConnectionError, EOFError):
                guest = _trusted(end)
                if guest.poll(max(0.0, deadline - time.monotonic())):
                    self._others[guest] = guest.recv()

    def look(self, wait_s: float = 0.0) -> None:
        """Take in what others said, after at most `wait_s`, and tell them now and then that this rank lives.

        Raises:
            RankFailed: a rank failed or ended.
        """
        for ready in wait(list(self._others), wait_s):
            assert isinstance(ready, Connection)
            rank = self._others[ready]
            try:
                kind, value = ready.recv()
            except (EOFError, OSError):
                raise RankFailed(rank, "has ended") from None
            self._heard[rank] = time.monotonic()
            if kind == "failed":
                raise RankFailed(*value)
            if kind == "value":
                self._values[rank] = value
        if time.monotonic() - self._said > self._limit_s / 4:
            self._send("alive", None)

    def exchange(self, value: Any) -> list[Any]:
        """Give a value, and return those of all ranks in their order.

        Raises:
            RankFailed: a rank failed, ended, or said nothing for too long.
        """
        began = time.monotonic()
        if self.rank:
            self._send("value", value)
        while missing := set(self._others.values()) - self._values.keys():
            self.look(self._limit_s / 4)
            for rank in missing - self._values.keys():
                if time.monotonic() - max(began, self._heard.get(rank, began)) > 2 * self._limit_s:
                    raise RankFailed(rank, f"said nothing for {2 * self._limit_s:g} s")
        if self.rank:
            values: list[Any] = self._values.pop(0)
            return values
        values = [value, *(self._values.pop(rank) for rank in range(1, self.size))]
        self._send("value", values)
        return values

    def share_file(self, descriptor: int) -> int:
        """Return rank 0's file, which the other ranks get from it; all call this right after an exchange."""
        for other in self._others:
            if self.rank:
                return recv_handle(other)
            send_handle(other, descriptor, 0)
        return descriptor

    def fail(self, error: BaseException) -> None:
        """Tell the others why this rank gives up."""
        if isinstance(error, RankFailed):
            self._send("failed", (error.rank, error.why))
        elif isinstance(error, KeyboardInterrupt):
            self._send("failed", (self.rank, "was interrupted"))
        else:
            self._send("failed", (self.rank, f"failed: {str(error) or type(error).__name__}"))

    def _send(self, kind: Literal["value", "failed", "alive"], value: Any) -> None:
        self._said = time.monotonic()
        for other in self._others:
            with suppress(OSError):  # it has ended, and reading tells why
                other.send((kind, value))

    def end_together(self) -> None:
        """Stay connected, and let this process end when those of all ranks end, or after a few seconds."""
        self._stays, self._limit_s = True, _LAST_WAIT_S / 2
        atexit.register(self._end)

    def _end(self) -> None:
        gc.collect()  # what this process mapped of others
        with suppress(RankFailed):
            self.exchange(None)

    def close(self) -> None:
        """Close the connections, unless the ranks end together."""
        for other in () if self._stays else self._others:
            other.close()


def _trusted(end: socket.socket) -> Connection:
    """Turn a socket into a connection; messages are pickled, so its other end must be this user's."""
    user = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if user != os.getuid():
        raise ConnectionError
    end.setblocking(True)
    return Connection(end.detach())
