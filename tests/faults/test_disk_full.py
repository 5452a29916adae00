"""A full disk is reported in one line; finished work stays, and the same command continues later."""

import subprocess
from pathlib import Path

import pytest

from engine.train.checkpoint import list_checkpoints
from loaders.common.errors import UserError
from loaders.packs import StoreOptions, open_pack
from tests.engine.synthetic import train_small
from tests.faults.http_store import serve
from tests.faults.records import record
from tests.loaders.packs.inputs import class_tree, folder_hashes, pack, write_tree


def mount(folder: Path, size_bytes: int) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"a small disk cannot be made here: {error}")
    if made.returncode:
        pytest.skip(f"a small disk cannot be made here: {made.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 256 KiB; return its folder and a function that enlarges it."""
    folder = tmp_path / "disk"
    mount(folder, 256 << 10)

    def enlarge(size: str = "64m") -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, enlarge
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_packing(tmp_path, small_disk):
    disk, enlarge = small_disk
    write_tree(tmp_path / "in", class_tree(10, 40))
    with pytest.raises(UserError, match=r"No space left.*make room.*it resumes"):
        pack(disk / "p", f"train={tmp_path / 'in'}", shard_size_mb=0.05)
    with pytest.raises(UserError, match="not finished"):
        open_pack(disk / "p")
    enlarge()
    pack(disk / "p", f"train={tmp_path / 'in'}", shard_size_mb=0.05)
    pack(tmp_path / "q", f"train={tmp_path / 'in'}", shard_size_mb=0.05)
    same = folder_hashes(disk / "p") == folder_hashes(tmp_path / "q")
    record("disk full while packing", 1, int(same), "one line; with space freed, the same bytes")


def test_training(tmp_path, small_disk):
    disk, enlarge = small_disk
    expected, _ = train_small(tmp_path / "whole", checkpoint_every_steps=1, keep_checkpoints=9)
    files = (path for path in (tmp_path / "whole" / "checkpoints").rglob("*") if path.is_file())
    enlarge(f"{sum(path.stat().st_size for path in files) * 2 // 3 >> 10}k")  # room for four of six
    with pytest.raises(UserError, match=r"cannot write the checkpoint.*No space left.*make room"):
        train_small(disk / "run", checkpoint_every_steps=1, keep_checkpoints=9)
    assert 0 < len(list_checkpoints(disk / "run" / "checkpoints")) < 6
    enlarge()
    weights, _ = train_small(disk / "run", checkpoint_every_steps=1, keep_checkpoints=9, resume=True)
    same = all((weights[name] == expected[name]).all() for name in expected)
    record("disk full while saving a checkpoint", 1, int(same), "one line; resumed to the same weights")


def test_cache(tmp_path, small_disk):
    disk, enlarge = small_disk
    write_tree(tmp_path / "in", class_tree(10, 40))
    local = pack(tmp_path / "p", f"train={tmp_path / 'in'}", shard_size_mb=0.05)
    with serve(local.path) as store:
        remote = open_pack(store.url, StoreOptions(disk / "cache"))
        with pytest.raises(UserError, match=r"cannot keep.*No space left.*make room"):
            list(map(remote.read, range(len(local))))
        enlarge()
        same = all(remote.read(row) == local.read(row) for row in range(len(local)))
    record("disk full while filling the cache", 1, int(same), "one line; with space freed, the right bytes")
