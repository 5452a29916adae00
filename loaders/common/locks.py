"""Advisory locks (`flock`): a second process on a folder waits or is refused; a kill frees the lock."""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loaders.common.errors import UserError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only command at work in a folder of --out, which is made when it does not exist.

    Raises:
        UserError: another command is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = (
        f"out: expected no other command in {folder}, found one at work; wait for it, or give another --out"
    )
    with locked(folder / "lock", taken):
        yield


@contextmanager
def locked(path: Path, taken: str | None = None) -> Iterator[None]:
    """Hold the lock that a file stands for; the system frees it when the process ends, however it ends.

    Args:
        path: the file, made when it does not exist, and left behind empty.
        taken: message if the lock is held already, by this process or another; None waits for the lock. A
            caller that waits relies on the lock; one with a message is only warned where the file system has
            no locks.

    Raises:
        UserError: it is held already; or, without `taken`, the file system has no locks.
        OSError: the file cannot be made.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if taken is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(str(taken)) from None
        except OSError as error:
            what = f"{path} cannot be locked ({error.strerror})"
            if taken is None:
                raise UserError(f"{what}: choose a folder on a file system with locks") from None
            warnings.warn(f"{what}: start no second process", stacklevel=2)
        yield
