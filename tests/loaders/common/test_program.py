"""The command line is read once, by the rules of `run_command`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from loaders.common.command_line import heed_ctrl_c
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """A program."""

    rate: float = 0.5
    """Some rate."""

    def check_places(self) -> None:
        """Refuse a rate above 1."""
        if self.rate > 1:
            raise UserError(f"rate: expected at most 1, found {self.rate}; lower it")


@pytest.fixture(autouse=True)
def usual_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    yield
    heed_ctrl_c()
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
    signal.signal(signal.SIGINT, before)


def test_the_words_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--rate", "0.25"])
    check_command_line(Config, None)
    found = command_line(Config, None)
    assert found == Config(0.25)
    assert command_line(Config, None) is found
    monkeypatch.setattr(sys, "argv", ["program", "--rate", "0.75"])
    assert command_line(Config, None) == Config(0.75), "other words"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "Some rate."),
        (["--nonsense"], 2, "--nonsense"),
        (["--rate", "2"], 2, "error: rate: expected at most 1, found 2.0; lower it\n"),
    ],
)
def test_what_ends_a_program_early(
    words: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):  # an earlier program in the same process changes nothing
        monkeypatch.setattr(sys, "argv", ["program", *words])
        with pytest.raises(SystemExit) as ended:
            check_command_line(Config, None)
        assert ended.value.code == code
        assert said in "".join(capsys.readouterr())
        monkeypatch.setattr(sys, "argv", ["program"])
        check_command_line(Config, None)


def test_ctrl_c_is_an_exception_again_once_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    check_command_line(Config, None)
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: signal.raise_signal(signal.SIGINT))
    assert ended.value.code == 130


def test_a_background_job_goes_on_ignoring_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    check_command_line(Config, None)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
