"""A pack returns the images that were packed, for any source, format and number of workers."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.common.errors import UserError
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import open_pack, packer
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tar, write_tree

FORMATS = ["webdataset", "ffcv"]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_class_tree_is_packed_and_read_back(tmp_path: Path, shard_format: str) -> None:
    files = class_tree(num_classes=3, per_class=7)
    write_tree(tmp_path / "in", files)
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}", shard_format=shard_format, shard_size_mb=0.01)
    assert result.num_shards > 1
    assert result.classes == ("c0", "c1", "c2")
    assert [f"{result.key(row)}.jpg" for row in range(len(result))] == [f"train/{n}" for n in sorted(files)]
    assert [result.read(row) for row in range(len(result))] == [files[name] for name in sorted(files)]
    np.testing.assert_array_equal(result.split("train").labels(), np.repeat([0, 1, 2], 7))
    assert set(result.columns.height.tolist()) == {24}
    assert set(result.columns.width.tolist()) == {32}
    assert verify_pack(tmp_path / "p") == []


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_shards_of_its_folder(tmp_path: Path, tar_format: int) -> None:
    files = class_tree() | {"c1/deep/er/0.jpg": jpeg(900), "loose.jpg": jpeg(901)}
    write_tree(tmp_path / "in", files)
    write_tar(tmp_path / "in.tar", {f"./top/{n}": d for n, d in reversed(files.items())}, tar_format)
    pack(tmp_path / "a", f"train={tmp_path / 'in'}")
    pack(tmp_path / "b", f"train={tmp_path / 'in.tar'}")
    assert folder_hashes(tmp_path / "a" / "shards") == folder_hashes(tmp_path / "b" / "shards")
    assert folder_hashes(tmp_path / "a" / "labels") == folder_hashes(tmp_path / "b" / "labels")


def test_two_splits_of_one_tar(tmp_path: Path) -> None:
    train, test = class_tree(seed=1), class_tree(num_classes=2, seed=2)
    files = {f"set/train/{n}": d for n, d in train.items()} | {f"set/test/{n}": d for n, d in test.items()}
    tar = write_tar(tmp_path / "set.tar", files)
    result = pack(tmp_path / "p", f"train={tar}#set/train", f"test={tar}#/set/test/")
    assert result.splits == ("train", "test")
    assert result.classes == ("c0", "c1", "c2")
    rows = result.split("test").rows(np.arange(len(test)))
    assert [result.read(row) for row in rows] == [test[name] for name in sorted(test)]
    np.testing.assert_array_equal(result.split("test").labels(), np.repeat([0, 1], 5))
    whole = pack(tmp_path / "q", f"all={tar}")
    assert whole.classes == result.classes
    assert whole.key(0) == "all/test/c0/000"


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {f"{i}.jpg": jpeg(i) for i in range(4)})
    write_tree(tmp_path / "lab", class_tree())
    result = pack(tmp_path / "p", f"unlabeled={tmp_path / 'in'}", f"train={tmp_path / 'lab'}")
    assert result.split("unlabeled").labels().tolist() == [-1] * 4
    assert (result.split("train").labels() >= 0).all()
    with tarfile.open(result.shard_path(0)) as tar:
        assert all(name.endswith(".jpg") for name in tar.getnames())
    with pytest.raises(UserError, match=r"no split 'val'.*unlabeled, train"):
        result.split("val")


@pytest.mark.parametrize(("shard_format", "small_bytes"), [("webdataset", 0), ("ffcv", 1 << 40)])
def test_workers_change_no_byte(
    tmp_path: Path, shard_format: str, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One format uses worker processes, the other threads; both write the bytes that one thread writes."""
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", small_bytes)
    write_tree(tmp_path / "in", class_tree(2, 40) | {"c0/cut.jpg": jpeg(3)[:-9]})
    options = {"shard_format": shard_format, "shard_size_mb": 0.02, "max_side": 20, "quality": 80}
    for workers in (1, 3):
        pack(tmp_path / str(workers), f"test={tmp_path / 'in'}", workers=workers, **options)
    assert folder_hashes(tmp_path / "1") == folder_hashes(tmp_path / "3")
    assert len(list((tmp_path / "1" / "shards").iterdir())) > 3


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
def test_decoding_in_threads_changes_no_byte(
    tmp_path: Path, shard_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
    write_tree(tmp_path / "in", class_tree(2, 40) | {"c0/cut.jpg": jpeg(3)[:-9]})
    options = {"shard_format": shard_format, "shard_size_mb": 0.02, "max_side": 20, "quality": 80}
    pack(tmp_path / "processes", f"test={tmp_path / 'in'}", workers=2, **options)
    monkeypatch.setattr(packer, "_LARGE_IMAGE_BYTES", 0)
    monkeypatch.setattr("concurrent.futures.process.ProcessPoolExecutor", None)
    pack(tmp_path / "threads", f"test={tmp_path / 'in'}", workers=2, **options)
    assert folder_hashes(tmp_path / "processes") == folder_hashes(tmp_path / "threads")


def test_max_side_shrinks_only_what_is_larger(tmp_path: Path) -> None:
    small, large = jpeg(1, 24, 32), jpeg(2, 100, 200)
    write_tree(tmp_path / "in", {"a/s.jpg": small, "b/l.jpg": large})
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}", max_side=64)
    assert result.read(0) == small
    assert simplejpeg.decode_jpeg(result.read(1)).shape == (32, 64, 3)
    assert (int(result.columns.height[1]), int(result.columns.width[1])) == (32, 64)
    assert result.manifest.actions == {"copied": 1, "reencoded+resized": 1}


def test_every_input_is_in_one_place(tmp_path: Path) -> None:
    files = class_tree()
    bad = {"c0/cut.jpg": jpeg(1)[:-40], "c0/empty.jpg": b"", "c1/notes": b"hello"}
    beside = {
        "README": b"words",
        ".DS_Store": b"\0\0\0\1Bud1",
        "c1/list.csv": b"a,b\n",
        "c1/._1.jpg": b"\0\5",
    }
    write_tree(tmp_path / "in", files | bad | beside)
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}", shard_size_mb=0.01)
    entries = [json.loads(line) for line in (tmp_path / "p" / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["name"]: (entry["code"], entry["reason"]) for entry in entries} == {
        "c0/cut.jpg": ("truncated", "truncated: Premature end of JPEG file"),
        "c0/empty.jpg": ("empty", "an empty file"),
        "c1/notes": ("not_an_image", "not an image"),
    }
    assert result.manifest.splits[0].num_skipped == len(beside)
    assert result.manifest.num_inputs == len(files) + len(bad)
    assert result.manifest.num_quarantined == len(bad)
    assert len(result) == len(files)
    assert verify_pack(tmp_path / "p") == []


def test_a_shard_of_nothing_but_bad_images_is_left_out(tmp_path: Path) -> None:
    files = {f"{i}.jpg": jpeg(i) if i != 1 else jpeg(i)[:300] for i in range(4)}
    write_tree(tmp_path / "in", files)
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}", shard_size_mb=0.001)
    names = [result.shard_path(shard).name for shard in range(result.num_shards)]
    assert names == ["train-000000.tar", "train-000002.tar", "train-000003.tar"]
    assert [result.read(row) for row in range(3)] == [files["0.jpg"], files["2.jpg"], files["3.jpg"]]
    assert result.split("train").row_ranges == ((0, 1), (1, 3))
    assert result.split("train").rows(np.array([[0, 2], [1, 0]])).tolist() == [[0, 2], [1, 0]]
    assert verify_pack(tmp_path / "p") == []


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree())
    pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    before = folder_hashes(tmp_path / "p")
    pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    assert folder_hashes(tmp_path / "p") == before
    assert not (tmp_path / "p" / ".build").exists()


def test_the_same_text_from_another_folder_is_another_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a pack of the first folder's images would count as one of the second folder's."""
    for name in ("one", "two"):
        write_tree(tmp_path / name, {"images/a.jpg": jpeg(len(name))})
        (tmp_path / name / "labels.csv").write_text("file,label\na.jpg,cat\n")
    out, absolute = tmp_path / "pack", f"train={tmp_path / 'one' / 'images'}#labels=labels.csv"
    monkeypatch.chdir(tmp_path / "one")
    pack(out, "train=images")
    labelled = pack(tmp_path / "labelled", absolute)
    pack(out, "train=images")
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UserError, match="its --splits were relative to another working folder"):
        pack(out, "train=images")
    with pytest.raises(UserError, match="its --splits were relative to another working folder"):
        pack(tmp_path / "labelled", absolute)
    assert str(tmp_path) not in str(labelled.manifest.options)
    (tmp_path / "two" / "images" / "a.jpg").write_bytes((tmp_path / "one" / "images" / "a.jpg").read_bytes())
    moved = pack(tmp_path / "moved", "train=images")
    assert moved.manifest != open_pack(out).manifest
    assert pack_fingerprint(moved) == pack_fingerprint(open_pack(out))


def test_large_images_get_larger_pages(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = simplejpeg.encode_jpeg(rng.integers(0, 256, (1400, 1400, 3), dtype=np.uint8), 95, "rgb", "444")
    assert len(noise) > 1 << 21
    write_tree(tmp_path / "in", {"0.jpg": jpeg(0), "1.jpg": noise, "2.jpg": jpeg(2)})
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}", shard_format="ffcv")
    assert result.read(1) == noise
    assert verify_pack(tmp_path / "p") == []


def test_rows_outside_are_refused(digits_pack) -> None:
    split = digits_pack.split("test")
    with pytest.raises(IndexError, match="445 images"):
        split.rows(np.array([445]))
    with pytest.raises(IndexError, match="rows"):
        digits_pack.read(len(digits_pack))
    assert open_pack(digits_pack.path).num_shards == digits_pack.num_shards
