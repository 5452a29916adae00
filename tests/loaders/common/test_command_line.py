"""Circumstances of a command line: `~`, the C locale, Ctrl-C, a closed pipe, and refusals by the system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

from loaders.common.command_line import expand_home
from loaders.common.errors import run_command
from loaders.common.help_lines import join_help_lines

ROOT = Path(__file__).parents[3]
PRINTS_A_NAME = """
import os, sys
from loaders.common.errors import run_command
run_command(lambda: print(os.listdir(sys.argv[1])[0], "\\u732b"))
"""
PRINTS_MUCH = """
from loaders.common.errors import run_command
run_command(lambda: print("x" * 1_000_000))
"""
HELP = """
from dataclasses import dataclass
import tyro
from loaders.common.errors import run_command
@dataclass
class Config:
    rate: float = 0.5
run_command(lambda: tyro.cli(Config, args=["--help"], description="word " * 40_000))
"""


def start(program: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
    known = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**known, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("~/x", "/home/ada/x"),
        ("~", "/home/ada"),
        ("--out=~/x", "--out=/home/ada/x"),
        ("--out=~", "--out=/home/ada"),
        ("train=~/images", "train=/home/ada/images"),
        ("train=wds:~/a-{0..3}.tar", "train=wds:/home/ada/a-{0..3}.tar"),
        ("train=~/a#labels=~/b.csv", "train=/home/ada/a#labels=/home/ada/b.csv"),
        ("pack:~/p#train", "pack:/home/ada/p#train"),
        ("./~/x", "./~/x"),
        ("a~/x", "a~/x"),
        ("--name=~3", "--name=~3"),
    ],
)
def test_a_home_is_expanded_where_the_shell_leaves_it(
    word: str, expanded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home([word]) == [expanded]


def test_a_command_gets_its_words_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "argv", ["tool", "--out=~/x", "y"])
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: None)
    assert ended.value.code == 0
    assert sys.argv == ["tool", "--out=/home/ada/x", "y"]


def test_a_home_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(sys, "argv", ["tool", "--out=~/x"])
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: pytest.fail("the command was run"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: ~: expected a home folder, found none; set HOME, or give the whole path\n"
    )


def test_the_c_locale_reads_and_prints_names_as_any_other_does(tmp_path: Path) -> None:
    (tmp_path / "犬").touch()
    with start(PRINTS_A_NAME, str(tmp_path), LC_ALL="C", PYTHONUTF8="0") as process:
        out, err = process.communicate(timeout=60)
    assert (out.decode(), err.decode(), process.returncode) == ("犬 猫\n", "", 0)


@pytest.mark.parametrize("program", [PRINTS_MUCH, HELP], ids=["output", "help"])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(program: str) -> None:
    with start(program) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read().decode()
        code = process.wait(timeout=60)
    assert (said, code) == ("", 141)


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [
        (KeyboardInterrupt(), "interrupted: finished work is kept; start the same command again\n"),
        (KeyboardInterrupt("saved\nstep 3"), "saved\\nstep 3\n"),
        (KeyboardInterrupt(""), ""),
    ],
)
def test_ctrl_c_is_one_line_and_exit_code_130(
    interrupt: KeyboardInterrupt, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise interrupt

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "change its permissions, or give another folder"),
        (errno.EROFS, "give a folder that can be written"),
        (errno.ENOSPC, "make room, or give a folder on another disk"),
        (errno.EMFILE, "raise the limit of open files: ulimit -n"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    number: int, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "/some\nwhere")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: /some\\nwhere: cannot be read or written ({os.strerror(number)}); {remedy}\n"
    )


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    with pytest.raises(FileNotFoundError):
        run_command(main)


def test_many_commands_in_one_process_join_help_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstring_parser, "parse_from_object", docstring_parser.parse_from_object)
    join_help_lines()
    joined = docstring_parser.parse_from_object
    join_help_lines()
    assert docstring_parser.parse_from_object is joined
