"""The command line of a program: read once, before the imports that take seconds.

A program first defines its configuration, from modules that import nothing heavy. Then it calls
`check_command_line`, and only then imports torch and the like. So a mistake and `--help` are answered at
once.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from tyro.conf import Positional as Positional
from tyro.conf import subcommand as subcommand

from loaders.common.command_line import end_at_ctrl_c
from loaders.common.errors import prepare_process, run_guarded

ConfigT = TypeVar("ConfigT")


@runtime_checkable
class WithPlaces(Protocol):
    """A configuration that can check at once whether the files and folders that it names are there."""

    def check_places(self) -> None:
        """Refuse files and folders that no run can begin with."""


_checked: tuple[Any, list[str], Any] | None = None  # configuration, words, parsed value
_called: str | None = None


def call_program(name: str | None) -> None:
    """Set the name of the program in its `--help` and its errors; None: the name of its file."""
    global _called
    _called = name


def check_command_line(config: Any, description: str | None) -> None:
    """Read the command line of this process; `--help` ends it with exit code 0, a mistake with 2.

    From here on until `run_command`, Ctrl-C ends the process with one line, and not with the traceback of an
    interrupted import.

    Args:
        config: dataclass, or union of subcommands, that tyro reads the words into.
        description: of the program, for `--help`.
    """
    global _checked
    _checked = None
    prepare_process()
    code = run_guarded(lambda: _keep(config, description))
    if _checked is None or code:
        sys.exit(code)
    end_at_ctrl_c()


@overload
def command_line(config: type[ConfigT], description: str | None) -> ConfigT: ...


@overload
def command_line(config: Any, description: str | None) -> Any: ...


def command_line(config: Any, description: str | None) -> Any:
    """Return the parsed command line: that of `check_command_line` if it has read these words already.

    Args:
        config: see `check_command_line`.
        description: of the program, for `--help`.
    """
    if _checked is not None and _checked[:2] == (config, sys.argv[1:]):
        return _checked[2]
    import tyro

    return tyro.cli(config, description=description, prog=_called)


def _keep(config: Any, description: str | None) -> None:
    global _checked
    value = command_line(config, description)
    if isinstance(value, WithPlaces):
        value.check_places()
    _checked = (config, sys.argv[1:], value)
