"""The cache folder of users without a home folder, or with one that they cannot write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from loaders.common.cache_folder import cache_folder, share_cache
from loaders.common.errors import UserError


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remove the user's home folder; return the folder for temporary files."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_no_home_is_a_folder_of_ones_own_among_the_temporary_files(homeless: Path) -> None:
    assert cache_folder() == homeless / f"sluice-{os.getuid()}" / "sluice"
    assert cache_folder().parent.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_counts_as_none(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: homeless / "home")
    assert cache_folder() == homeless / "home" / ".cache" / "sluice"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder() == homeless / f"sluice-{os.getuid()}" / "sluice"


def test_libraries_are_told_too_where_there_is_no_home(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    share_cache()
    assert os.environ["XDG_CACHE_HOME"] == str(homeless / f"sluice-{os.getuid()}")
    assert os.environ["MPLCONFIGDIR"].startswith(os.environ["XDG_CACHE_HOME"])


def test_a_home_stays_as_it_is(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: homeless)
    share_cache()
    assert "XDG_CACHE_HOME" not in os.environ


def test_a_folder_that_others_can_write_is_refused(homeless: Path) -> None:
    cache_folder().parent.chmod(0o777)
    with pytest.raises(UserError, match="found one that others own or can write; set XDG_CACHE_HOME"):
        cache_folder()


def test_a_link_is_refused(homeless: Path) -> None:
    (homeless / f"sluice-{os.getuid()}").symlink_to(homeless)
    with pytest.raises(UserError, match="found one that others own or can write"):
        cache_folder()
