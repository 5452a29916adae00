"""Conversion keeps every byte; the audit finds what is missing, changed or cannot be decoded."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.packs import open_pack
from loaders.packs.audit import compare_with_source, decode_all
from loaders.packs.columns import column_path
from loaders.packs.convert import convert_pack
from loaders.packs.manifest import read_manifest
from loaders.packs.sources.spec import SplitSource
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tree


def source_with_all(tmp_path: Path) -> Path:
    files = class_tree(2, 6) | {"c0/cut.jpg": jpeg(1)[:-9], "c1/big.jpg": jpeg(2, 300, 200)}
    return write_tree(tmp_path / "in", files)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_there_and_back(tmp_path: Path, encoding: str) -> None:
    source = source_with_all(tmp_path)
    splits = (f"train={source}", f"test={source / 'c0'}")
    pack(tmp_path / "tar", *splits, max_side=100, encoding=encoding)
    convert_pack(tmp_path / "tar", tmp_path / "beton", "ffcv", workers=1)
    convert_pack(tmp_path / "beton", tmp_path / "back", "webdataset", workers=1)
    tar, beton = open_pack(tmp_path / "tar"), open_pack(tmp_path / "beton")
    assert [tar.read(r) for r in range(len(tar))] == [beton.read(r) for r in range(len(tar))]
    assert [tar.key(r) for r in range(len(tar))] == [beton.key(r) for r in range(len(tar))]
    for name in ("action", "content_hash", "crc32", "height", "width", "split", "encoding"):
        np.testing.assert_array_equal(getattr(tar.columns, name), getattr(beton.columns, name))
    assert tar.columns.crc32.tolist() == [zlib.crc32(tar.read(r)) for r in range(len(tar))]
    assert folder_hashes(tmp_path / "tar" / "shards") == folder_hashes(tmp_path / "back" / "shards")
    assert folder_hashes(tmp_path / "tar" / "labels") == folder_hashes(tmp_path / "back" / "labels")
    reasons = [
        [
            json.loads(line)["reason"]
            for line in (tmp_path / name / "quarantine.jsonl").read_text().splitlines()
        ]
        for name in ("tar", "back")
    ]
    assert reasons[0] == reasons[1] != []
    same = ("num_images", "num_inputs", "num_quarantined", "actions", "classes")
    for name in same:
        assert getattr(tar.manifest, name) == getattr(beton.manifest, name)
    assert verify_pack(tmp_path / "beton") == verify_pack(tmp_path / "back") == []


def test_rows_larger_than_a_file_may_be_are_carried_over(tmp_path: Path, monkeypatch) -> None:
    """Raw pixels take more space than the file that they came from; --max-pixels has already allowed them."""
    raw = pack(tmp_path / "raw", f"train={source_with_all(tmp_path)}", encoding="raw")
    for module in ("shards.job", "divided", "listing"):
        monkeypatch.setattr(f"loaders.packs.{module}.MAX_FILE_BYTES", 1000)
    assert raw.columns.size.min() > 1000
    assert convert_pack(raw.path, tmp_path / "beton", "ffcv", workers=1).num_images == len(raw)
    divided = pack(tmp_path / "d", f"a,b=pack:{raw.path}:0.5,0.5", encoding="raw")
    assert [split.num_images for split in divided.manifest.splits] == [7, 6]


def test_a_damaged_image_is_not_carried_over(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a", f"train={source_with_all(tmp_path)}")
    path, place = packed.shard_path(0), int(packed.columns.offset[4]) + 200
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    convert_pack(tmp_path / "a", tmp_path / "b", "ffcv", workers=1)
    entries = (tmp_path / "b" / "quarantine.jsonl").read_text()
    assert f'"{packed.key(4)}"' in entries
    assert "content hash differs" in entries


def test_a_pack_is_a_source_of_smaller_images(tmp_path: Path) -> None:
    pack(tmp_path / "a", f"train={source_with_all(tmp_path)}", encoding="raw")
    small = pack(tmp_path / "b", f"train=pack:{tmp_path / 'a'}", short_side=16, crop_square=True)
    assert set(small.columns.height.tolist()) == set(small.columns.width.tolist()) == {16}
    assert simplejpeg.decode_jpeg(small.read(0)).shape == (16, 16, 3)


def test_decode_notices_a_wrong_size(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a", f"train={source_with_all(tmp_path)}")
    assert decode_all(packed, 2) == []
    heights = np.load(tmp_path / "a" / column_path("height"))
    heights[3] += 1
    np.save(tmp_path / "a" / column_path("height"), heights)
    (line,) = decode_all(open_pack(tmp_path / "a"), 2)
    assert line == f"row 3 ({packed.key(3)}) decodes to (24, 32), the index says (25, 32)"


def test_nothing_is_missing(tmp_path: Path) -> None:
    source = source_with_all(tmp_path)
    packed = pack(tmp_path / "a", f"train={source}", max_side=100)
    split = SplitSource("train", str(source))
    assert compare_with_source(packed, split) == []
    (source / "c0" / "new.jpg").write_bytes(jpeg(50))
    (source / "c0" / "001.jpg").write_bytes(jpeg(51))
    (source / "c1" / "002.jpg").unlink()
    differences = compare_with_source(packed, split)
    assert len(differences) == 3
    assert f"train/c0/new of {source} is neither packed nor quarantined" in differences
    assert "train/c0/001 differs from its source" in differences
    assert f"1 inputs of split train are not in {source}, e.g. train/c1/002" in differences


def test_the_manifest_of_a_conversion_names_its_source(tmp_path: Path) -> None:
    pack(tmp_path / "a", f"train={source_with_all(tmp_path)}")
    convert_pack(tmp_path / "a", tmp_path / "b", "ffcv", workers=1)
    manifest = read_manifest(tmp_path / "b")
    assert manifest.splits[0].source == f"pack:{tmp_path / 'a'}#train"
    assert replace(manifest, shard_format="webdataset") != read_manifest(tmp_path / "a")
