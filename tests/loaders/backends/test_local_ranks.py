"""Ranks of one host connect to each other; here each rank is a thread of one process."""

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from loaders import LoaderOptions
from loaders.backends import local_ranks
from loaders.backends.local_ranks import LocalRanks, RankFailed, meet
from loaders.common.errors import LoaderError

NUMBERS = count()


def together(size, limit_s, action):
    """Connect ranks; return what `action(rank)` returns or raises on each."""
    name = f"\0sluice-test-{os.getpid()}-{next(NUMBERS)}".encode()

    def run(number):
        ranks = LocalRanks(number, size)
        try:
            ranks.join(name, limit_s)
            return action(ranks)
        except RankFailed as error:
            ranks.fail(error)
            return str(error)
        finally:
            ranks.close()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def test_all_get_the_values_of_all_in_their_order():
    def twice(ranks):
        return ranks.exchange(ranks.local_rank), ranks.exchange(str(ranks.local_rank))

    assert together(4, 20.0, twice) == [([0, 1, 2, 3], ["0", "1", "2", "3"])] * 4


def test_a_failure_is_told_to_those_that_are_still_at_work():
    def action(ranks):
        if ranks.local_rank == 2:
            return ranks.fail(ValueError("no such file"))
        while True:
            ranks.look(20.0)

    line = "backend resident: rank 2 of this host failed: no such file"
    assert together(3, 20.0, action) == [line, line, None]


def test_ranks_of_others_are_not_let_in(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    said = together(2, 0.1, lambda ranks: "met")
    assert [line.split(" to load")[0] for line in said] == [
        f"backend resident: rank {other} of this host did not join within 0.1 s" for other in (1, 0)
    ]


def test_ranks_that_have_another_split_do_not_meet(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    options = LoaderOptions(num_ranks=2, timeout_s=0.1)
    names = []
    monkeypatch.setattr(LocalRanks, "join", lambda _, name, limit_s: names.append(name))
    for facts, port in (("split", "1"), ("split", "1"), ("other", "1"), ("split", "2")):
        monkeypatch.setenv("MASTER_PORT", port)
        with meet(options, facts):
            pass
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_an_address_that_is_taken_is_told_at_once_and_does_not_blame_a_rank():
    taken = f"\0sluice-test-{os.getpid()}".encode()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(taken)
        with pytest.raises(LoaderError, match=r"rank 0 cannot open a socket \(.* in use\); start again$"):
            LocalRanks(0, 2).join(taken, 60.0)


def test_an_error_of_the_system_does_not_blame_a_rank(monkeypatch):
    class Full(socket.socket):
        def connect(self, address):
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", Full)
    with pytest.raises(OSError, match="Too many open files"):
        LocalRanks(1, 2).join(b"\0sluice-test-full", 60.0)


@pytest.mark.parametrize(
    ("environment", "rank", "num_ranks", "found"),
    [
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 1, 2, (1, 2)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}, 3, 4, (1, 2)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}, 0, 4, (0, 1)),  # a rank set by hand
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 0, 1, (0, 1)),
        ({"LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "2"}, 0, 2, (0, 1)),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, 0, 2, (0, 1)),
        ({}, 1, 2, (0, 1)),
    ],
)
def test_which_rank_of_its_host_a_process_is(monkeypatch, environment, rank, num_ranks, found):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_ranks.local_ranks(LoaderOptions(rank=rank, num_ranks=num_ranks)) == found
