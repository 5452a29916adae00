"""Stop signals: handlers are restored, Ctrl-C works at any moment, ranks may end early, no sockets leak."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.train.stop import RunStopped, StopSignal
from loaders.common.errors import LoaderError
from tests.engine.ranks import run_ranks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handler_of_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal():
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before


def test_ctrl_c_in_the_wait_for_a_batch_ends_it_and_says_so_in_a_line() -> None:
    def train() -> None:
        with StopSignal() as stop:
            assert stop.wait_for(lambda: signal.raise_signal(signal.SIGINT)) is None
            assert stop.agree()
            raise stop.end("saved step 3")

    line = "interrupted: saved step 3; run the same command with --resume to continue"
    with pytest.raises(KeyboardInterrupt, match=line):
        train()


def test_ctrl_c_in_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt, match="this training is finished and saved"), StopSignal():
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once() -> None:
    def train() -> None:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.agree()
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        train()


def test_a_job_in_the_background_ignores_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.agree()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_the_interpreter_did_not_set_becomes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a handler set by a C library, Python returns None, which cannot be set again."""
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
    """Let rank 1 end with an error of its own while the other ranks go on to the next step."""
    said = ""
    with suppress(KeyError), StopSignal() as stop:
        assert not stop.agree()
        if rank == 1:
            raise KeyError("a reason of its own")
        try:
            stop.agree()
        except LoaderError as error:
            said = str(error)
    return {"named": torch.tensor("expected all 2 to begin a step, found that one had ended" in said)}


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
