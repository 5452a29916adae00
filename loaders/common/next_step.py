"""Suggested commands, in last lines and messages, written as this one was called: by file or `sluice`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

_SHORT = {
    "pack_dataset": "pack",
    "verify_pack": "verify",
    "inspect_pack": "inspect",
    "convert_pack": "convert",
    "show_views": "show",
}  # as tools/sluice.py calls them
IS_A_STEP = "SLUICE_IS_A_STEP"
"""Environment variable, set for a command that another runs as a step: no next command is then suggested."""
_STEPS = ("active", "evaluate")  # scripts of recipes/ that train no network of their own
_SCRIPT = re.compile(r"(?<![\w./-])(?:python )?((?:tools|recipes)/\w+\.py)\b")
_called: str | None = None


def call_program(name: str | None) -> None:
    """Set the program's name in `--help` and errors; None for the name of its file."""
    global _called
    _called = name


def called() -> str | None:
    """Return the name that `call_program` set; None if the program was called by its file."""
    return _called


def as_called(text: str) -> str:
    """Return a message in which scripts are commands of `sluice`, if this program was called by `sluice`."""
    if not (_called or "").startswith("sluice"):
        return text
    return _SCRIPT.sub(lambda found: " ".join(_begin(found[1])), text)


def _begin(script: str) -> list[str]:
    """Return the first words of the command that runs a script such as "tools/predict.py"."""
    path = Path(script)
    if not (_called or "").startswith("sluice"):
        return ["python", script]
    train = ["train"] if path.parts[0] == "recipes" and path.stem not in _STEPS else []
    return ["sluice", *train, *_SHORT.get(path.stem, path.stem.replace("bench_", "bench ")).split()]


def next_line(script: str, *words: object) -> str:
    """Return the line that suggests a command.

    Args:
        script: such as "tools/predict.py".
        words: options of the command; those in capitals are for the user to fill in.
    """
    return f"next: {shlex.join([*_begin(script), *map(str, words)])}"


def say_next(script: str, *words: object) -> None:
    """Print `next_line` in a launcher's first process, unless another command runs this one as a step."""
    if os.environ.get("RANK", "0") == "0" and IS_A_STEP not in os.environ:
        print(next_line(script, *words))
