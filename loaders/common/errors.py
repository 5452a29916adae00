"""Exceptions, and the wrapper of commands that turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from loaders.common.allocator import keep_freed_memory
from loaders.common.command_line import (
    INTERRUPTED,
    describe_system_error,
    expand_home,
    heed_ctrl_c,
    use_utf8,
)
from loaders.common.help_lines import join_help_lines
from loaders.common.next_step import as_called

_BROKEN_PIPE = 141  # 128 plus the number of SIGPIPE
# All ranks but a machine's first wait this long before they report a mistake: usually the first reports the
# same mistake, and the launcher then ends all ranks.
_LATER_S = 5.0


def one_line(text: str) -> str:
    """Escape what would break the line or control the terminal, since messages quote foreign names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def brief(reason: BaseException | str, width: int = 160) -> str:
    """Return an exception's message, or a text, as one line for use in parentheses; cut if too long."""
    words = " ".join(str(reason).split()) or ("" if isinstance(reason, str) else type(reason).__name__)
    return one_line(words if len(words) <= width else words[: width - 4] + " ...")


class UserError(Exception):
    """A mistake that the user can fix: the message says what, expected, found and remedy in one line.

    It is not a ValueError, because tyro prints a configuration's ValueErrors in a box.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class MissingBackendError(UserError):
    """An optional dependency cannot be imported; the message says how to install it."""


class LoaderError(RuntimeError):
    """A loader cannot deliver a batch; the message says why."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class BadImageError(LoaderError):
    """A row cannot be read, and the loader's options say to raise instead of replacing it."""

    def __init__(self, pack: object, what: str) -> None:
        """Say what is wrong and what to do.

        Args:
            what: the row and what is wrong with it.
        """
        super().__init__(f"{what}; restore it in {pack}, or use another row instead: --bad-images replace")


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command-line entry point; a `UserError` prints one line to stderr and exits with code 2.

    A `LoaderError` does the same, since a pack or store that cannot deliver is repaired outside the program.
    So do a lack of memory, often due to a mistyped size, and system errors with a known remedy.
    Ctrl-C exits with code 130. If the reader of the output is gone (`--help | head`), the code is 141, as in
    shells.
    """
    prepare_process()
    sys.exit(run_guarded(main))


def prepare_process() -> None:
    """Set up what every command needs: UTF-8, freed memory kept, Ctrl-C that raises, help in paragraphs."""
    use_utf8()
    keep_freed_memory()
    heed_ctrl_c()
    join_help_lines()
    if isinstance(sys.stdout, TextIOWrapper):  # like stderr, since a path may hold undecodable bytes
        sys.stdout.reconfigure(errors="backslashreplace")


def run_guarded(main: Callable[[], int | None]) -> Any:
    """Call `main` by the rules of `run_command`; return the exit code."""
    try:
        code = _outcome(main)
        sys.stdout.flush()
    except BrokenPipeError:
        # Discard buffered output, which would fail once more while Python exits.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    return code


def _outcome(main: Callable[[], int | None]) -> Any:
    """Call `main` and return its exit code; after an error, print a line and return that error's code."""
    try:
        try:
            sys.argv[1:] = _expanded(sys.argv[1:])
            return main() or 0
        except UserError:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                time.sleep(_LATER_S)  # in the outer try, so that Ctrl-C during the wait prints a line too
            raise
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt as interrupt:
        said = interrupt.args or ("interrupted: finished work is kept; start the same command again",)
        if said[0]:  # empty on all ranks but the first
            print(one_line(str(said[0])), file=sys.stderr)
        return INTERRUPTED
    except (UserError, LoaderError) as error:
        print(f"error: {as_called(str(error))}", file=sys.stderr)
    except MemoryError as error:
        print(
            f"error: out of memory ({one_line(str(error))}); lower batch size or resolution", file=sys.stderr
        )
    except OSError as error:
        line = describe_system_error(error)
        if line is None:
            raise
        print(f"error: {one_line(line)}", file=sys.stderr)
    return 2


def _expanded(words: list[str]) -> list[str]:
    try:
        return expand_home(words)
    except RuntimeError as error:
        raise UserError(str(error)) from None
