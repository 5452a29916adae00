"""Reads the command line of a program once, before the imports that take seconds.

A program first defines its configuration, from modules that import nothing heavy. It then calls
`check_command_line`, and only afterwards imports torch and the like, so it answers a mistake and `--help`
at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from io import StringIO
from typing import Any, Protocol, TypeVar, get_type_hints, overload, runtime_checkable

from tyro.conf import Positional as Positional
from tyro.conf import subcommand as subcommand

from loaders.common.command_line import end_at_ctrl_c
from loaders.common.errors import UserError, prepare_process, run_guarded
from loaders.common.mistakes import retell
from loaders.common.next_step import called
from loaders.common.notice import tell

ConfigT = TypeVar("ConfigT")


@runtime_checkable
class WithPlaces(Protocol):
    """A configuration that can check at once whether the files and folders it names can be used."""

    def check_places(self) -> None:
        """Refuse files and folders with which no run can begin."""


@runtime_checkable
class WithPreset(Protocol):
    """A configuration with an option that changes the defaults of other options."""

    def settle(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return new defaults by field, and values by field that override the command line."""

    def describe_preset(self, asked: Any, defaults: Mapping[str, Any]) -> str:
        """Return a line on the effect of `defaults`, or ""; `asked` is the configuration without them."""


_checked: tuple[Any, list[str], Any] | None = None  # configuration, words, parsed value


def check_command_line(config: Any, description: str | None) -> None:
    """Read the command line of this process; `--help` ends it with exit code 0, a mistake with 2.

    From then on until `run_command`, Ctrl-C ends the process with one line, and not with the traceback of an
    interrupted import.

    Args:
        config: dataclass, or union of subcommands, that tyro fills from the command line.
        description: what the program does, for `--help`.
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
    """Return the parsed command line, its preset applied; reuse what `check_command_line` has read.

    Args:
        description: what the program does, for `--help`.
    """
    if _checked is not None and _checked[:2] == (config, sys.argv[1:]):
        return _checked[2]
    value = _read(config, description)
    if not isinstance(value, WithPreset):
        return value
    defaults, fixed = value.settle()
    own: Any = type(value)
    if defaults:
        other = _read(with_defaults(own, defaults), description)
        settled = own(**{**{one.name: getattr(other, one.name) for one in fields(own)}, **fixed})
    else:
        settled = replace(value, **fixed)  # type: ignore[type-var]
    if line := settled.describe_preset(value, defaults):
        tell(line)
    return settled


def with_defaults(config: type[Any], defaults: Mapping[str, Any]) -> type[Any]:
    """Return a subclass of a frozen configuration with other defaults, given by field."""
    types = get_type_hints(config, include_extras=True)
    changed = [(name, types[name], _as_default(value)) for name, value in defaults.items()]
    return make_dataclass(config.__name__, changed, bases=(config,), frozen=True, kw_only=True)


def _as_default(value: Any) -> Any:
    return field(default_factory=lambda: value) if is_dataclass(value) else field(default=value)


def _read(config: Any, description: str | None) -> Any:
    import tyro

    with _mistakes_in_a_line(_options(config)):
        return tyro.cli(config, description=description, prog=called())


def _options(config: Any) -> set[str]:
    """Return the names, without prefixes, of a configuration's options and of those one level below it.

    Only fields whose default is a configuration are entered. A union of subcommands gives the empty set.
    """
    found = fields(config) if is_dataclass(config) else ()
    inner = [part for one in found if is_dataclass(one.default) for part in fields(one.default)]
    return {one.name.replace("_", "-") for one in (*found, *inner)}


@contextmanager
def _mistakes_in_a_line(known: set[str]) -> Iterator[None]:
    """Turn tyro's message about a mistake into a `UserError`; print it if it is not recognised."""
    said, columns = StringIO(), os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(sys.argv[1:]):
        os.environ["COLUMNS"] = "100000"  # so that no line in the box is broken
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        line = retell(said.getvalue(), known) if end.code else None
        if line is None:
            raise
        said.truncate(0)
        raise UserError(line) from None
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ |= {"COLUMNS": columns} if columns is not None else {}
        sys.stderr.write(said.getvalue())


def _keep(config: Any, description: str | None) -> None:
    global _checked
    value = command_line(config, description)
    if isinstance(value, WithPlaces):
        value.check_places()
    _checked = (config, sys.argv[1:], value)
