"""The signal to stop: what it leaves of the process when a training is over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.stop import StopSignal
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
