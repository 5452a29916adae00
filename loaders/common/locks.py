"""Advisory locks of files (`flock`): a second process that wants a lock waits or is refused."""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loaders.common.errors import UserError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other commands out of an --out folder, which is created if needed.

    Raises:
        UserError: another command is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = (
        f"out: expected no other command in {folder}, found one running; wait for it, or give another --out"
    )
    with locked(folder / "lock", taken):
        yield


@contextmanager
def locked(path: Path, taken: str | None = None) -> Iterator[None]:
    """Hold the lock of a file; the system frees the lock when the process ends, even if it is killed.

    Args:
        path: the file; it is created if needed, and stays.
        taken: message of the error if this or another process holds the lock; None waits for the lock. If
            the file system has no locks, a call with a message only warns, but a call without one raises.

    Raises:
        UserError: the lock is held already; or, without `taken`, the file system has no locks.
        OSError: the file cannot be created.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if taken is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(str(taken)) from None
        except OSError as error:
            what = f"{path} cannot be locked ({error.strerror})"
            if taken is None:
                raise UserError(f"{what}; choose a folder on a file system with locks") from None
            warnings.warn(f"{what}; start no second process", stacklevel=2)
        yield
