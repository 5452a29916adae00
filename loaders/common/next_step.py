"""Suggests the next command, as a command's last line, in the form in which that command was called."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from loaders.common import program

_SHORT = {
    "pack_dataset": "pack",
    "verify_pack": "verify",
    "inspect_pack": "inspect",
}  # as tools/sluice.py calls them
IS_A_STEP = "SLUICE_IS_A_STEP"
"""Environment variable, set for a command that another runs as a step: no next command is then suggested."""
_STEPS = ("active", "evaluate")  # scripts of recipes/ that train no network of their own


def next_line(script: str, *words: object) -> str:
    """Return the line that suggests a command.

    Args:
        script: such as "tools/predict.py".
        words: options of the command; those in capitals are for the user to fill in.
    """
    path = Path(script)
    begin = ["python", script]
    if program.called().startswith("sluice"):
        train = ["train"] if path.parts[0] == "recipes" and path.stem not in _STEPS else []
        begin = ["sluice", *train, _SHORT.get(path.stem, path.stem)]
    return f"next: {shlex.join([*begin, *map(str, words)])}"


def say_next(script: str, *words: object) -> None:
    """Print `next_line` in a launcher's first process, unless another command runs this one as a step."""
    if os.environ.get("RANK", "0") == "0" and IS_A_STEP not in os.environ:
        print(next_line(script, *words))
