"""The signal to stop: what it leaves of the process when a training is over."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.stop import RunStopped, StopSignal
from loaders.errors import LoaderError
from tests.engine.ranks import run_ranks


def test_the_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_that_the_interpreter_did_not_set_becomes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library in C may have set one; Python calls it None and takes no None back."""
    before, install = signal.getsignal(signal.SIGTERM), signal.signal
    try:
        with monkeypatch.context() as patched:
            patched.setattr(signal, "signal", lambda number, handler: (install(number, handler), None)[1])
            stop = StopSignal().__enter__()
        stop.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        install(signal.SIGTERM, before)


def test_a_signal_while_cleaning_up_after_the_first_changes_nothing() -> None:
    def get() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    def train() -> None:
        with StopSignal() as stop:
            assert stop.wait_for(get) is None
            assert stop.agree()
            signal.raise_signal(signal.SIGTERM)

    cleaned: list[bool] = []
    with pytest.raises(RunStopped):
        train()
    assert cleaned


def rank_that_leaves(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Let rank 1 end for a reason of its own while the others come to the next step."""
    said = ""
    with suppress(KeyError), StopSignal() as stop:
        assert not stop.agree()
        if rank == 1:
            raise KeyError("a reason of its own")
        try:
            stop.agree()
        except LoaderError as error:
            said = str(error)
    return {"named": torch.tensor("expected all 2 to begin a step, found one gone" in said)}


def test_a_rank_that_is_gone_is_one_line_on_the_others() -> None:
    found = [bool(result["named"]) for result in run_ranks(rank_that_leaves, 2)]
    assert found == [True, False]


def open_files_after(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Count the open files after one training and after ten more."""
    counts = []
    for times in (1, 10):
        for _ in range(times):
            with StopSignal() as stop:
                assert not stop.agree()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    return {"open": torch.tensor(counts)}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list open files")
def test_trainings_one_after_the_other_keep_no_sockets() -> None:
    for result in run_ranks(open_files_after, 2):
        once, often = result["open"].tolist()
        assert often <= once + 2
