"""Folders that cannot be written are refused before work begins; a file appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.common.files import atomic_file, check_file, check_folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user cannot write; for root, who ignores permissions, a read-only file system."""
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o555)
    if not os.access(folder, os.W_OK):
        yield folder
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("root can write every folder, and there is no mount to make one that it cannot")
    if mounted.returncode:
        pytest.skip(f"root can write every folder, and may not mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["", "new", "new/inside"])
def test_a_read_only_folder_is_refused(name: str, read_only: Path) -> None:
    place = read_only / name
    with pytest.raises(UserError, match=rf"out: {place} cannot be written .*; give another --out"):
        check_folder(place)
    with pytest.raises(UserError, match=rf"page: {place} cannot be written .*; give another --page"):
        check_file(place / "x.html", "page")
    check_file(place / "x.html", "page", writable=False)
    assert list(read_only.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "file")
    with pytest.raises(UserError, match=r"expected a folder at .*, found the file"):
        check_folder(tmp_path / "file" / "x")
    with pytest.raises(UserError, match=r"expected a file at .*, found a folder"):
        check_file(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table"
    with atomic_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"second", "no bytes"])
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
