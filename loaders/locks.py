"""Advisory locks: two processes never write the same folder, and a killed one leaves nothing locked."""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loaders.errors import UserError


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock that a file stands for; the system frees it when the process ends, however it ends.

    Args:
        path: the file, made when it does not exist, and left behind empty.
        taken: what to tell when another process holds it.

    Raises:
        UserError: another process holds it.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(taken) from None
        except OSError as error:  # a file system without locks
            warnings.warn(f"{path} cannot be locked ({error}): start no second process", stacklevel=2)
        yield
