"""Locks between processes that work on the same folder: refused, waited for, or impossible."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest

from loaders.common.errors import UserError
from loaders.common.locks import alone_in, locked


def test_what_is_held_is_refused_or_waited_for(tmp_path: Path) -> None:
    events: list[str] = []
    asking = threading.Event()

    def wait() -> None:
        asking.set()
        with locked(tmp_path / "lock"):
            events.append("second")

    waiting = threading.Thread(target=wait, daemon=True)
    with locked(tmp_path / "lock"):
        with (
            pytest.raises(UserError, match="somebody works here"),
            locked(tmp_path / "lock", "somebody works here"),
        ):
            pass
        waiting.start()
        assert asking.wait(10)
        waiting.join(0.05)  # enough time for a mistake to show
        events.append("first")
    waiting.join(10)
    assert events == ["first", "second"]


def test_one_command_is_at_work_in_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path / "deep" / "out"):
        second = pytest.raises(
            UserError, match=r"^out: expected no other command in .*, found one running; wait"
        )
        with second, alone_in(tmp_path / "deep" / "out"):
            pass
    with alone_in(tmp_path / "deep" / "out"):
        pass


def test_a_file_system_without_locks_is_refused_by_who_relies_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    refused = pytest.raises(UserError, match=r"cannot be locked \(No locks available\); choose a folder")
    with refused, locked(tmp_path / "lock"):
        pass
    with pytest.warns(UserWarning, match="start no second process"), locked(tmp_path / "lock", "taken"):
        pass
