"""Read the last line of a command's output, which suggests the next command, as a user would type it."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

import tyro


def read_next_line(out: str) -> tuple[str, Any]:
    """Return the script that the last line of an output suggests, and the options in that line.

    Raises:
        AssertionError: the last line suggests no command, or one with options that the script does not take.
    """
    begin, python, script, *words = shlex.split(out.strip().splitlines()[-1])
    assert (begin, python) == ("next:", "python"), out
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    config = module.Command if script == "tools/labels.py" else module.Config
    try:
        return script, tyro.cli(config, args=words)
    except SystemExit as ended:
        raise AssertionError(f"{script} does not take {words}") from ended
