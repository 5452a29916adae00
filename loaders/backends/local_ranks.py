"""Connects the ranks of a host while they load a split together, without a process group.

A loader may be built in any thread, and on some ranks only. A collective operation could then be mixed up
with those of training, so each rank connects to the host's rank 0 by a socket in Linux's abstract namespace.
Such a socket has no file, an earlier run leaves nothing behind, and the kernel closes the end of a killed
rank.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from loaders.common.errors import LoaderError, one_line
from loaders.options import LoaderOptions

_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")


def local_ranks(options: LoaderOptions) -> tuple[int, int]:
    """Return this process's local rank, and the number of ranks on its host.

    Both come from the variables that torchrun and accelerate set; (0, 1) if these are missing or do not fit
    the options.
    """
    try:
        local_rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    launched = os.environ.get("RANK", str(options.rank)) == str(options.rank)
    return (local_rank, size) if launched and 0 <= local_rank < size <= options.num_ranks else (0, 1)


class RankFailed(LoaderError):
    """A rank of this host cannot do its part. Arguments: its local rank, and a clause that says why."""

    def __str__(self) -> str:
        return one_line("backend resident: rank {} of this host {}".format(*self.args))


@contextmanager
def meet(options: LoaderOptions, *facts: object) -> Iterator[LocalRanks]:
    """Connect the ranks of this host that pass equal `facts`; an error on one rank reaches all of them."""
    ranks = LocalRanks(*local_ranks(options))
    name = repr([os.geteuid(), ranks.size, *map(os.environ.get, _LAUNCH), *facts])
    try:
        ranks.join(b"\0sluice-" + hashlib.sha256(name.encode()).hexdigest()[:32].encode(), options.timeout_s)
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        ranks.close()


class LocalRanks:
    """This rank's connections: to rank 0 or, on rank 0, to all other ranks.

    Once connected, a rank waits for messages without a time limit. No such wait lasts forever: a rank that
    ends closes its connections, and a rank whose decoding hangs gives up and tells the others.

    Attributes:
        local_rank: number of this process on the host.
        size: number of the host's ranks.
    """

    def __init__(self, local_rank: int, size: int) -> None:
        """Begin without connections."""
        self.local_rank, self.size = local_rank, size
        self._peers: dict[Connection, int] = {}
        self._values: dict[int, Any] = {}

    def join(self, address: bytes, limit_s: float) -> None:
        """Connect the ranks, within a time limit.

        Raises:
            RankFailed: a rank did not connect in time.
            LoaderError: another process has the address.
        """
        deadline = time.monotonic() + limit_s
        expected = {0} if self.local_rank else set(range(1, self.size))
        with socket.socket(socket.AF_UNIX) as listener:
            if not self.local_rank:
                try:
                    listener.bind(address)
                except OSError as error:
                    raise LoaderError(
                        f"backend resident: rank 0 cannot open a socket ({error}); start again"
                    ) from error
                listener.listen(self.size)
            while missing := expected - set(self._peers.values()):
                if (left_s := deadline - time.monotonic()) <= 0:
                    raise RankFailed(
                        min(missing),
                        f"did not join within {limit_s:g} s to load its part of a split; build the same "
                        "loaders on every rank, or raise timeout_s if it is only slow",
                    )
                listener.settimeout(left_s)
                with suppress(ConnectionError, TimeoutError, EOFError):  # try again
                    self._reach(listener, address, left_s)

    def _reach(self, listener: socket.socket, address: bytes, wait_s: float) -> None:
        """Connect to rank 0 if it listens; on rank 0, accept the next rank."""
        with socket.socket(socket.AF_UNIX) if self.local_rank else listener.accept()[0] as end:
            if self.local_rank:
                time.sleep(0.01)  # wait a little before each try
                end.connect(address)
            peer = _trusted(end)
        if self.local_rank:
            peer.send(self.local_rank)
            self._peers[peer] = 0
        elif peer.poll(wait_s):
            self._peers[peer] = peer.recv()

    def look(self, wait_s: float | None = 0.0) -> None:
        """Receive messages of other ranks; wait at most `wait_s` for the first, or without limit if None.

        Raises:
            RankFailed: a rank failed or ended.
        """
        for ready in wait(list(self._peers), wait_s):
            assert isinstance(ready, Connection)
            local_rank = self._peers[ready]
            try:
                value = ready.recv()
            except (EOFError, OSError):
                raise RankFailed(local_rank, "has ended") from None
            if isinstance(value, RankFailed):
                raise value
            self._values[local_rank] = value

    def exchange(self, value: Any) -> list[Any]:
        """Send a value to all ranks, and return the values of all ranks, in rank order.

        Raises:
            RankFailed: a rank failed or ended.
        """
        if self.local_rank:
            self._send(value)
        while set(self._peers.values()) - self._values.keys():
            self.look(None)
        if self.local_rank:
            values: list[Any] = self._values.pop(0)
            return values
        values = [value, *(self._values.pop(peer) for peer in range(1, self.size))]
        self._send(values)
        return values

    def fail(self, error: BaseException) -> None:
        """Tell the others why this rank gives up."""
        if isinstance(error, KeyboardInterrupt):
            error = RankFailed(self.local_rank, "was interrupted")
        if not isinstance(error, RankFailed):
            error = RankFailed(self.local_rank, f"failed: {str(error) or type(error).__name__}")
        self._send(error)

    def _send(self, value: Any) -> None:
        for peer in self._peers:
            with suppress(OSError):  # that rank has ended; the next read reports it
                peer.send(value)

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers:
            peer.close()


def _trusted(end: socket.socket) -> Connection:
    """Turn a socket into a connection. Messages are pickled, so the other end must be this user's."""
    _, user, _ = struct.unpack("iII", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.geteuid():
        raise ConnectionError
    end.setblocking(True)
    return Connection(end.detach())
