"""Exceptions of the loaders, and how a command line turns a user's mistake into a line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


def one_line(text: str) -> str:
    """Escape what would break the line or steer a terminal; messages quote names from outside."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class UserError(ValueError):
    """A mistake that the user can mend: the message says what, expected, found and remedy in one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class MissingBackendError(UserError):
    """An optional dependency that is not installed; the message gives the command that installs it."""


class LoaderError(RuntimeError):
    """A loader cannot deliver: the message names shard, row and key, or the wait that ran out."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command-line entry point; a `UserError` prints one line to stderr and exits with code 2.

    So does a `LoaderError`: a pack or a store that cannot deliver is mended outside the program too.
    """
    try:
        code = main()
    except (UserError, LoaderError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
