"""A user's mistake gives one line that names the thing, the rule and the remedy, and leaves no files."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.kernels.packing import read as read_files
from loaders.packs import open_pack, packer
from loaders.packs.sources import folder
from loaders.packs.sources.spec import parse_splits
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tar, write_tree


def refused(tmp_path: Path, match: str, *splits: str, **options) -> None:
    out = tmp_path / "new" / "pack"
    with pytest.raises(UserError, match=match) as caught:
        pack(out, *splits, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists(), "something was left behind"


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refused(tmp_path, "split 'train': .*in holds no file", f"train={tmp_path / 'in'}")


def test_second_split_empty_leaves_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree())
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "holds no file", f"train={tmp_path / 'in'}", f"test={tmp_path / 'empty'}")


def test_missing_source(tmp_path: Path) -> None:
    refused(
        tmp_path,
        "no images at .*nowhere: expected a folder, .tar, .tar.gz, .zip",
        f"train={tmp_path / 'nowhere'}",
    )


def test_source_of_another_kind(tmp_path: Path) -> None:
    write_tree(tmp_path, {"x.rar": b"Rar!", "y.tar": b"no tar at all" * 100, "z.tar": b"", "a.JPG": b"x"})
    refused(tmp_path, "x.rar is not .*: expected a folder.*; unpack or", f"train={tmp_path / 'x.rar'}")
    refused(tmp_path, "a.JPG is not .*: expected a folder.*; give its folder", f"train={tmp_path / 'a.JPG'}")
    refused(tmp_path, "y.tar is not a tar", f"train={tmp_path / 'y.tar'}")
    refused(tmp_path, "z.tar is empty", f"train={tmp_path / 'z.tar'}")


def test_wrong_folder_inside_a_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"set/train/a/0.jpg": jpeg(0)})
    refused(tmp_path, "holds no file below 'set/val': .*set/train", f"train={tar}#set/val")


def test_no_image_can_be_packed(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a/0.jpg": b"words", "a/1.jpg": jpeg(1)[:200]})
    refused(tmp_path, r"none of the 2 files .*a/0.jpg.* not an image", f"train={tmp_path / 'in'}")


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["train=a", "train=b"], "split 'train' is given twice"),
        (["train"], "split 'train': expected NAME=PATH"),
        (["tr/ain=a"], "split name 'tr/ain'"),
        ([".=a"], "split name '.'"),
        ([], "no split given"),
    ],
)
def test_split_arguments(texts: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_splits(texts)


def test_options_out_of_range(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree())
    source = f"train={tmp_path / 'in'}"
    for option, match in (
        ({"quality": 0}, "--quality 0"),
        ({"max_side": 0}, "--max-side 0"),
        ({"shard_size_mb": 0.0}, "--shard-size-mb 0"),
        ({"workers": -1}, "--workers -1"),
        ({"shard_format": "zip"}, "--format 'zip'"),
    ):
        refused(tmp_path, match, source, **option)


def test_another_command_over_a_pack(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree())
    source = f"train={tmp_path / 'in'}"
    pack(tmp_path / "p", source)
    before = folder_hashes(tmp_path / "p")
    with pytest.raises(UserError, match="holds a pack made with quality not given, now 50"):
        pack(tmp_path / "p", source, quality=50)
    write_tree(tmp_path / "other", class_tree())
    with pytest.raises(UserError, match=f"made with splits {source}, now train={tmp_path / 'other'}: choose"):
        pack(tmp_path / "p", f"train={tmp_path / 'other'}")
    with pytest.raises(UserError, match="made with format webdataset, now ffcv"):
        pack(tmp_path / "p", source, shard_format="ffcv")
    assert folder_hashes(tmp_path / "p") == before


def test_out_is_taken(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree())
    write_tree(tmp_path / "mine", {"thesis.txt": b"years of work"})
    with pytest.raises(UserError, match="not empty and holds no unfinished pack"):
        pack(tmp_path / "mine", f"train={tmp_path / 'in'}")
    assert (tmp_path / "mine" / "thesis.txt").read_bytes() == b"years of work"
    (tmp_path / "l.csv").write_text("path,label\nc0/000.jpg,a\n")
    for suffix in ("", f"#labels={tmp_path / 'l.csv'}"):
        with pytest.raises(UserError, match="lies inside the source"):
            pack(tmp_path / "in" / "pack", f"train={tmp_path / 'in'}{suffix}")
    with pytest.raises(UserError, match="is a file"):
        pack(tmp_path / "mine" / "thesis.txt", f"train={tmp_path / 'in'}")


def test_a_tar_cut_in_the_middle(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {f"s/{i}.jpg": jpeg(i) for i in range(4)})
    data = tar.read_bytes()
    member_bytes = 512 + -(-len(jpeg(0)) // 512) * 512
    for cut in (2 * member_bytes, 2 * member_bytes + 100, 2 * member_bytes + 700):
        tar.write_bytes(data[:cut])
        refused(tmp_path, f"x.tar is cut off at byte {cut}", f"train={tar}")
    tar.write_bytes(data[:member_bytes] + b"x" * 512 + data[member_bytes + 512 :])
    refused(tmp_path, f"is damaged at byte {member_bytes}", f"train={tar}")


def test_links(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree(1, 2))
    write_tree(tmp_path / "elsewhere", {"9.jpg": jpeg(9)})
    (tmp_path / "in" / "c0" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "c0" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "in" / "c9").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "in" / "c0" / "pipe.jpg")
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    assert result.key(2) == "train/c9/9"
    reasons = {
        entry["name"]: entry["reason"]
        for entry in map(json.loads, (tmp_path / "p" / "quarantine.jsonl").read_text().splitlines())
    }
    assert reasons == {
        "c0/gone.jpg": "cannot be read: No such file or directory",
        "c0/loop": "a link to a folder that contains it (endless loop)",
        "c0/pipe.jpg": "not a regular file",
    }


def test_links_in_a_tar(tmp_path: Path) -> None:
    """Links in a tar, which are second names of files, go to the quarantine, and no image is lost."""
    write_tree(tmp_path / "in", class_tree(1, 2))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "in" / "c0", "c0")
        for number, kind in enumerate((tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"c1/{number}.jpg")
            member.type, member.linkname = kind, "c0/000.jpg"
            tar.addfile(member)
    result = pack(tmp_path / "p", f"train={tmp_path / 'x.tar'}")
    assert (len(result), result.manifest.num_quarantined, result.manifest.num_inputs) == (2, 4, 6)
    entries = map(json.loads, (tmp_path / "p" / "quarantine.jsonl").read_text().splitlines())
    what = ("link", "link", "device", "pipe")
    assert [(entry["name"], entry["reason"]) for entry in entries] == [
        (f"c1/{number}.jpg", f"a {kind} in a tar: unpack it and pack the folder")
        for number, kind in enumerate(what)
    ]


def test_a_source_that_changes_stops_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loaders.packs import packer

    files = class_tree()
    write_tree(tmp_path / "in", files)
    listed = packer.make_plan

    def make_plan_then(change):
        def patched(*args):
            plan = listed(*args)
            change()
            return plan

        monkeypatch.setattr(packer, "make_plan", patched)

    victim = tmp_path / "in" / "c1" / "002.jpg"
    make_plan_then(victim.unlink)
    with pytest.raises(UserError, match=r"cannot be opened now .* start the same command again"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    with pytest.raises(UserError, match="is not finished: start the same"):
        open_pack(tmp_path / "p")
    victim.write_bytes(files["c1/002.jpg"] + b"more")
    make_plan_then(lambda: None)
    with pytest.raises(UserError, match="changed while packing"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    victim.write_bytes(files["c1/002.jpg"])
    pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    pack(tmp_path / "q", f"train={tmp_path / 'in'}")
    assert folder_hashes(tmp_path / "p") == folder_hashes(tmp_path / "q")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loaders.packs.shards import tar_shard

    def full(file, data) -> None:
        file.write(data[:100])
        raise OSError(28, "No space left on device")

    write_tree(tmp_path / "in", class_tree())
    with monkeypatch.context() as patched:
        patched.setattr(tar_shard, "write_all", full)
        with pytest.raises(UserError, match=r"No space left on device.*make room and start the same command"):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    assert list((tmp_path / "p" / "shards").iterdir()) == []
    pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    pack(tmp_path / "q", f"train={tmp_path / 'in'}")
    assert folder_hashes(tmp_path / "p") == folder_hashes(tmp_path / "q")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's refusal is simulated, because root may list any folder."""
    write_tree(tmp_path / "in", class_tree())
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("c1"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refusing)
    match = r"cannot list the folder .*c1 \(Permission denied\): make it readable and start again"
    refused(tmp_path, match, f"train={tmp_path / 'in'}")


@pytest.mark.parametrize("small_bytes", [0, 1 << 60])
def test_a_file_that_may_not_be_read(
    tmp_path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both one by one and in bulk, where the compiled reader fails first."""
    write_tree(tmp_path / "in", class_tree())
    opened, listed = os.open, read_files.read_files

    def refusing(path, *args, **options):
        if os.fspath(path).endswith("c1/002.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *args, **options)

    def reading(paths, path_starts, sizes):
        data, starts, good = listed(paths, path_starts, sizes)
        names = paths.split(b"\0")
        good[[i for i, name in enumerate(names[:-1]) if name.endswith(b"c1/002.jpg")]] = False
        return data, starts, good

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(read_files, "read_files", reading)
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", small_bytes)
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    (entry,) = map(json.loads, (tmp_path / "p" / "quarantine.jsonl").read_text().splitlines())
    assert (entry["name"], entry["reason"]) == ("c1/002.jpg", "cannot be read: Permission denied")
    assert len(result) == len(class_tree()) - 1


def test_names_of_300_characters_and_line_breaks_in_a_tar(tmp_path: Path) -> None:
    names = [f"c0/{'n' * 300}.jpg", "c0/two\nlines\r.jpg", "c0/日本-ü.jpg", f"{'d' * 300}/x.jpg"]
    tar = write_tar(tmp_path / "x.tar", {f"set/{name}": jpeg(i) for i, name in enumerate(names)})
    result = pack(tmp_path / "p", f"train={tar}#set")
    keys = {result.key(row) for row in range(len(result))}
    assert keys == {
        f"train/c0/{'n' * 300}",
        "train/c0/two%0Alines%0D",
        "train/c0/日本-ü",
        f"train/{'d' * 300}/x",
    }
    assert {result.read(row) for row in range(len(result))} == {jpeg(i) for i in range(len(names))}
    assert not (tmp_path / "p" / "quarantine.jsonl").read_bytes()


def test_a_source_whose_path_is_no_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    write_tree(folder, {"c/0.jpg": jpeg(0), "empty.jpg": b""})
    packed = pack(tmp_path / "p", f"train={folder}")
    assert len(packed) == 1
    assert open_pack(tmp_path / "p").manifest.splits[0].source == str(folder)
