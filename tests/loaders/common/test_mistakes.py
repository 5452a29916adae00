"""tyro's boxed message about a mistake becomes one line: what, expected, found and remedy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from loaders.common.errors import UserError
from loaders.common.mistakes import retell
from loaders.common.program import Positional, command_line, subcommand


@dataclass(frozen=True)
class Config:
    """A program."""

    pack: Path
    """Folder of a pack."""
    out: Path
    """Folder of a run."""
    rate: float = 0.5
    """Some rate, whose explanation is so long that it does not stand on one line of a terminal."""
    per_class: int | None = None
    """Some number."""
    device: Literal["auto", "cpu"] = "auto"
    """Where."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Two numbers."""
    resume: bool = False
    """Whether."""


@dataclass(frozen=True)
class Divide:
    """Divide a pack."""

    pack: Positional[Path]
    """Folder of a pack."""
    share: float
    """Some share."""


@dataclass(frozen=True)
class Compare:
    """Compare packs."""

    top: int | None = None
    """Some number."""


Command = Annotated[Divide, subcommand("divide")] | Annotated[Compare, subcommand("compare")]
WHOLE = ("--pack", "a", "--out", "b")
LONG = "w" * 300


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (Config, (*WHOLE, "--rate", "abc"), "--rate: expected FLOAT, found 'abc'; change it"),
        (Config, (*WHOLE, "--rate", LONG), f"--rate: expected FLOAT, found '{LONG}'; change it"),
        (Config, (*WHOLE, "--rate", "a'c"), """--rate: expected FLOAT, found "a'c"; change it"""),
        (Config, (*WHOLE, "--per-class", "x"), "--per-class: expected INT or None, found 'x'; change it"),
        (
            Config,
            (*WHOLE, "--device", "gpu"),
            "--device: expected one of 'auto', 'cpu', found 'gpu'; choose one of them",
        ),
        (Config, ("--pack",), "--pack: expected a value, found none; give one"),
        (Config, (*WHOLE, "--betas", "0.9"), "--betas: expected 2 values, found fewer; give all"),
        (
            Config,
            (),
            "command line: expected --pack PATH, --out PATH too, found none; add what is missing",
        ),
        (
            Config,
            ("--pack", "a", "--oot", "b"),
            "command line: expected --out PATH too, found --oot b instead; add what is missing",
        ),
        (
            Config,
            (*WHOLE, "--rat", "1"),
            "command line: expected known options, found --rat, 1; did you mean --rate?",
        ),
        (
            Config,
            (*WHOLE, "--no-resum"),
            "command line: expected known options, found --no-resum; did you mean --resume, --no-resume?",
        ),
        (
            Config,
            (*WHOLE, LONG),
            f"command line: expected known options, found {LONG}; leave it out, or check its name",
        ),
        (Command, (), "command: expected one of divide, compare, found none; name one"),
        (
            Command,
            ("compar",),
            "command: expected one of divide, compare, found compar; name one of them first",
        ),
        (
            Command,
            ("divide", "a"),
            "command line: expected --share FLOAT too, found none; add what is missing",
        ),
        (
            Command,
            ("compare", "--share", "3"),
            "command line: expected known options, found --share 3; leave it out, or check its name",
        ),
        (
            Command,
            ("compare", "--share", "3", "--to-p", "4"),
            "command line: expected known options, found --share 3 --to-p 4; did you mean --top?",
        ),
        (
            Command,
            ("--top", "3"),
            "command: expected one of divide, compare, found --top 3; name one of them first",
        ),
    ],
)
def test_a_mistake_is_one_line(
    config: Any, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *words])
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(UserError) as refused:
        command_line(config, None)
    prog = "program divide" if words[:1] == ("divide",) else "program"
    assert os.environ["COLUMNS"] == "60"
    assert str(refused.value) == f"{said} (`{prog} --help` says more)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "usage: program\n",
        "╭─ Error ─╮\n│ Something else. │\n│ ─── │\n│ For full helptext, run program --help │\n",
    ],
)
def test_other_words_are_not_retold(text: str) -> None:
    assert retell(text) is None


def test_other_words_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *WHOLE, "--rate", "abc"])
    monkeypatch.setattr("loaders.common.program.retell", lambda *_: None)
    with pytest.raises(SystemExit, match="2"):
        command_line(Config, None)
    assert "could not convert string to float: 'abc'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [  # on a terminal, and with output that is not in UTF-8
        "\x1b[31m╭─ Missing subcommand ─╮\x1b[0m\n\x1b[31m│\x1b[0m Expected one of\x1b[36m {a, b}\x1b[0m. │\n"
        "│ \x1b[31m────────────────────\x1b[0m │\n│ For full helptext, run \x1b[1mp --help\x1b[0m │\n╰─╯\n",
        " Missing subcommand \n ------------------\n  Expected one of {a, b}.  \n  -------- \n"
        "  For full helptext, run p --help \n      \n",
    ],
)
def test_colours_and_ascii_are_understood(text: str) -> None:
    assert retell(text) == "command: expected one of a, b, found none; name one (`p --help` says more)"
