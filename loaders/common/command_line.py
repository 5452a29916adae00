"""What every command line needs around its program: UTF-8, `~`, Ctrl-C, and a line on a system error."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 plus the number of SIGINT."""
_HOME = re.compile(r"(?:^|(?<=[=:]))~(?:[\w.-]*(?=/)|$)")
# System errors that a user can fix outside the program, and the remedy for each.
_REMEDIES = {
    errno.EACCES: "change its permissions, or give another folder",
    errno.EPERM: "change its permissions, or give another folder",
    errno.EROFS: "give a folder that can be written",
    errno.ENOSPC: "make room, or give a folder on another disk",
    errno.EDQUOT: "make room, or give a folder on another disk",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOTDIR: "give another path: a file stands where a folder is expected",
    errno.EISDIR: "give another path: a folder stands where a file is expected",
    errno.EIO: "check the disk or the network that it is on",
    errno.ESTALE: "check the network that it is on",
}


def use_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if the locale has another encoding.

    In the C locale, names of files, and so of classes, would be read differently than elsewhere, and
    printing or reading text would fail at the first letter that is not ASCII.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    environment = {**os.environ, "PYTHONUTF8": "1"}  # for the processes that this one will start
    with suppress(OSError):  # if the interpreter cannot be started, keep the locale's encoding
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def end_at_ctrl_c() -> None:
    """Make Ctrl-C end the process with a one-line message while libraries load, until `heed_ctrl_c`.

    No exception is raised, because C code that is loading would turn it into other errors.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # background jobs ignore it
        signal.signal(signal.SIGINT, _end)


def end_script_at_ctrl_c() -> None:
    """Call `end_at_ctrl_c` if this process runs a script of this project; importing `loaders` calls this."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
    if script.parent.parent == Path(__file__).resolve().parents[2] and script.parent.name in (
        "recipes",
        "tools",
    ):
        end_at_ctrl_c()


def heed_ctrl_c() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted: no work had begun; start the same command again\n")
    os._exit(INTERRUPTED)


def expand_home(words: Sequence[str]) -> list[str]:
    """Return words of a command line with `~` expanded where a shell leaves it, as in `train=~/images`.

    A `~` is expanded at the beginning of a word and after `=` or `:`, if it ends the word or begins `~/` or
    `~user/`.

    Raises:
        RuntimeError: the user has no home, or there is no such user.
    """
    return [_HOME.sub(lambda found: _home(found[0]), word) for word in words]


def _home(name: str) -> str:
    home = os.path.expanduser(name)
    if home == name:
        raise RuntimeError(f"{name}: expected a home folder, found none; set HOME, or give the whole path")
    return home


def describe_system_error(error: OSError) -> str | None:
    """Return a line on what the system refused and what to do; None for an error without a known remedy."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = " and ".join(names) or "a file"
    return f"{what}: cannot be read or written ({error.strerror}); {remedy}"
