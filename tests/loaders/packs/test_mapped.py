"""Mapped shards: no open descriptors, read-only, and the same folder after the process changes directory."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.packs import open_pack
from loaders.packs.mapped import map_file
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pack of one image in each of 40 shards."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        (folder / "images" / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 95))
    splits = parse_splits([f"train={folder / 'images'}"])
    pack_dataset(PackOptions(splits, folder / "pack", shard_size_mb=0.001, workers=1))
    return folder / "pack"


def test_a_pack_may_have_more_shards_than_a_process_has_files(many_shards: Path) -> None:
    pack = open_pack(many_shards)
    assert pack.num_shards == 40
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 12, hard))
    try:
        addresses, sizes, _maps = pack.locate(np.arange(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(set(addresses.tolist())) == 40
    assert sizes.min() > 0


def test_a_pack_is_found_again_after_a_change_of_folder(
    many_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(many_shards.parent)
    pack = open_pack("pack")
    monkeypatch.chdir(tmp_path)
    assert pack.read(39) == open_pack(many_shards).read(39)
    assert len(pack.labels) == 0


def test_a_home_in_a_path_is_expanded(many_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(many_shards.parent))
    assert open_pack("~/pack").path == many_shards


def test_a_map_shows_the_file_and_outlives_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    part = map_file(path)[50:60]
    path.unlink()
    assert part.tobytes() == bytes(range(50, 60))
    assert not part.flags.writeable


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        map_file(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "none")
    with pytest.raises(OSError, match=r"."):
        map_file(tmp_path)
