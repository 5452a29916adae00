"""The one exception for a user's mistake, and how a command line turns it into a line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake that the user can mend: the message says what, expected, found and remedy in one line."""


class MissingBackendError(UserError):
    """An optional dependency that is not installed; the message gives the command that installs it."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command-line entry point; a `UserError` prints one line to stderr and exits with code 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
