"""Keys that every reader accepts, and the directory of a tar."""

import io
import os
import re
import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loaders.packs.sources.naming import file_key, file_stem, folder_key, is_image_name
from loaders.packs.sources.tar_members import list_members
from tests.loaders.packs.inputs import jpeg, pack, write_tar, write_tree

STRAY_BYTES = st.integers(0xDC80, 0xDCFF).map(chr)  # Python's form of bytes that are not UTF-8
NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | STRAY_BYTES, min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))


def keys_of(names: list[str]) -> list[str]:
    """Return the keys of the files of one folder."""
    stems = list(map(file_stem, names))
    return [file_key(name, stems.count(file_stem(name)) > 1) for name in names]


def test_keys_leave_the_suffix_out() -> None:
    assert keys_of(["a.jpg", "b.JPEG", "c", "n01_1.tar.png"]) == ["a", "b", "c", "n01_1%2Etar"]
    assert keys_of(["a.jpg", "a.png", "b.jpg", "b"]) == ["a%2Ejpg", "a%2Epng", "b%2Ejpg", "b"]
    assert keys_of([".jpg"]) == ["%2Ejpg"]
    assert folder_key("v1.0/a b") == "v1.0/a%20b"
    assert is_image_name("x.JPG")
    assert not is_image_name("jpg")


@given(st.lists(NAMES, unique=True, max_size=8))
def test_keys_are_distinct_and_safe(names: list[str]) -> None:
    keys = keys_of(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert re.fullmatch(r"[^\s.]+", key)
        assert "".join(key.split()) == key
        key.encode("utf-8")


def test_strange_names_survive_every_reader(tmp_path: Path) -> None:
    names = ["new\nline.jpg", "sp ace.jpg", "ünïcödé-日本.jpg", "a.b.c.jpg", "x" * 240 + ".jpg", "__m__.jpg"]
    files = {f"{'d' * 120}/{name}": jpeg(i) for i, name in enumerate(names)}
    write_tree(tmp_path / "in", files)
    (tmp_path / "in" / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(jpeg(99))
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    keys = [result.key(row) for row in range(len(result))]
    assert len(set(keys)) == len(names) + 1
    with tarfile.open(result.shard_path(0)) as tar:
        images = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}
    assert images == {f"{key}.jpg": result.read(row) for row, key in enumerate(keys)}
    assert {os.fsencode(m.name).decode() for m in list_members(result.shard_path(0))} >= set(images)
    index = result.shard_path(0).with_suffix(".idx").read_text().splitlines()
    assert index[0] == f"v1.2 {len(keys)}"
    assert {len(line.split(" ")) for line in index[1:]} == {4, 8}


def test_tar_members_agree_with_the_standard_library(tmp_path: Path) -> None:
    for number, tar_format in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=tar_format) as tar:
            for name in ("a/b.jpg", "long/" * 25 + "x.jpg", "ü.jpg", "empty.jpg"):
                member = tarfile.TarInfo(name)
                member.size = 0 if name == "empty.jpg" else len(jpeg(1))
                tar.addfile(member, io.BytesIO(jpeg(1)))
            folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link.jpg")
            folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "a/b.jpg"
            tar.addfile(folder)
            tar.addfile(link)
        with tarfile.open(path) as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar if not m.isdir()]
        assert [(m.name, m.position, m.size_bytes) for m in list_members(path)] == expected


def test_a_member_given_twice(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "x.tar", {"s/a.jpg": jpeg(0), "s/b.jpg": jpeg(1)})
    with tarfile.open(first, "a") as tar:
        member = tarfile.TarInfo("s/a.jpg")
        member.size = len(jpeg(2))
        tar.addfile(member, io.BytesIO(jpeg(2)))
    result = pack(tmp_path / "p", f"train={first}")
    assert [result.read(row) for row in range(2)] == [jpeg(2), jpeg(1)]
    assert (
        "a later member of the archive has the same name" in (tmp_path / "p" / "quarantine.jsonl").read_text()
    )
    assert result.manifest.num_inputs == 3


def test_classes_come_from_folders_with_images(tmp_path: Path) -> None:
    write_tree(
        tmp_path / "in",
        {"cat/1.jpg": jpeg(1), "docs/readme.md": b"#", "dog/deep/2.jpg": jpeg(2), "3.jpg": jpeg(3)},
    )
    result = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    assert result.classes == ("cat", "deep")
    assert [result.key(row) for row in range(3)] == ["train/3", "train/cat/1", "train/dog/deep/2"]
    assert result.split("train").labels().tolist() == [-1, 0, 1]
