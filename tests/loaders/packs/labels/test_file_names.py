"""Labels that are added later find their images by file name, and may add new classes."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.append import append_to_pack
from loaders.packs.labels.class_names import CLASS_NAMES_PATH
from loaders.packs.labels.file_names import RowNames
from loaders.packs.packer import PackOptions
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import jpeg, pack, write_tree
from tools import labels as tool

FILES = {"cat/1.jpg": 1, "cat/my photo.v2.JPG": 2, "dog/1.jpg": 3, "dog/3.png.jpg": 4, "dog/5.jpg": 5}


@pytest.fixture
def packed(tmp_path: Path) -> Pack:
    write_tree(tmp_path / "in", {name: jpeg(seed) for name, seed in FILES.items()})
    write_tree(tmp_path / "more", {"5.jpg": jpeg(50), "6.jpg": jpeg(60)})
    return pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"test={tmp_path / 'more'}")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["labels.py", *map(str, arguments)])
    tool.main()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat/1.jpg", "cat/1"),
        ("dog/1", "dog/1"),
        ("my photo.v2.JPG", "cat/my"),
        ("/home/me/photos/cat/my photo.v2.JPG", "cat/my"),
        (r".\dog\3.png.jpg", "dog/3"),
        ("train/dog/5", "dog/5"),
        ("6.jpg", "test/6"),
    ],
)
def test_any_unique_part_of_the_path(packed: Pack, name: str, expected: str) -> None:
    row = RowNames(packed, [(0, len(packed))]).find(name, "x")
    assert expected in packed.key(row)


def test_every_key_finds_its_own_row(tmp_path: Path) -> None:
    names = ("a.jpg", "train/a.jpg", "b.jpg", "b.png", "b%2Ejpg.jpg", "c\\d.jpg", "c/d.jpg")
    write_tree(tmp_path / "in", {name: jpeg(seed) for seed, name in enumerate(names)})
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    found = RowNames(packed, [(0, len(packed))])
    assert [found.find(packed.key(row), "x") for row in range(len(packed))] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("1.jpg", r"matches 2 images, such as train/cat/1, train/dog/1: give more of its path"),
        (
            "bird/1.jpg",
            r"no image called 'bird/1.jpg'; expected a heading .* such as: path,class / cat/1.jpg,cat",
        ),
        ("", "no image called ''"),
    ],
)
def test_names_of_no_image_or_several(packed: Pack, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        RowNames(packed, [(0, len(packed))]).find(name, "x")


def test_a_list_of_files_in_one_split(packed: Pack, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "l.csv").write_text("filename,label\n1.jpg,cat\n5.jpg,dog\n")
    with pytest.raises(UserError, match=re.escape("row 1: '1.jpg' matches 2 images")):
        run(monkeypatch, "import", packed.path, "--file", tmp_path / "l.csv", "--name", "l")
    (tmp_path / "l.csv").write_text("filename,label\n6.jpg,cat\n5.jpg,dog\n")
    run(monkeypatch, "import", packed.path, "--file", tmp_path / "l.csv", "--name", "l", "--split", "test")
    table = LabelTable.read(packed.path / "labels/l.parquet")
    assert [(packed.key(r), packed.classes[c]) for r, c in zip(table.row, table.label, strict=True)] == [
        ("test/5", "dog"),
        ("test/6", "cat"),
    ]


def test_wrong_columns_show_the_expected_form(packed: Pack, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "l.csv").write_text("who,what\n6.jpg,cat\n")
    with pytest.raises(UserError, match=r"has the columns who, what: .* path,class / cat/1\.jpg,cat"):
        run(monkeypatch, "import", packed.path, "--file", tmp_path / "l.csv", "--name", "l")


def test_new_classes_come_behind_the_old(packed: Pack, tmp_path: Path, monkeypatch, capsys) -> None:
    old = packed.labels
    few = LabelTable.of(np.array([0]), np.array([1]), 2)
    few.write(packed.path / "labels/few.parquet")
    (tmp_path / "l.csv").write_text("path,class\n6.jpg,owl\ntest/5.jpg,bee\ncat/1.jpg,dog\n")
    arguments = ("import", packed.path, "--file", tmp_path / "l.csv", "--name", "l")
    with pytest.raises(
        UserError, match="the pack has no class 'owl'; it has cat, dog; --new-classes adds it"
    ):
        run(monkeypatch, *arguments)
    run(monkeypatch, *arguments, "--new-classes")
    assert "new classes bee, owl; 4 in all" in capsys.readouterr().out
    opened = open_pack(packed.path)
    assert opened.classes == ("cat", "dog", "bee", "owl")
    assert opened.labels.num_classes == 4
    np.testing.assert_array_equal(opened.labels.label, old.label)
    table = LabelTable.read(packed.path / "labels/l.parquet")
    assert dict(zip(table.row.tolist(), table.label.tolist(), strict=True)) == {0: 1, 5: 2, 6: 3}
    opened.labels.join(opened.checked_labels(LabelTable.read(packed.path / "labels/few.parquet")))
    assert verify_pack(packed.path, 1) == []
    # Images appended later use these classes and add new ones.
    write_tree(tmp_path / "yet", {"owl/a.jpg": jpeg(70), "yak/a.jpg": jpeg(71)})
    append_to_pack(PackOptions(parse_splits([f"yet={tmp_path / 'yet'}"]), packed.path, workers=1))
    again = open_pack(packed.path)
    assert again.classes == ("cat", "dog", "bee", "owl", "yak")
    assert again.split("yet").labels().tolist() == [3, 4]


def test_classes_of_another_pack_are_refused(packed: Pack) -> None:
    (packed.path / CLASS_NAMES_PATH).write_text('["dog", "cat", "owl"]')
    with pytest.raises(UserError, match="expected the classes of the pack first"):
        open_pack(packed.path)
    with pytest.raises(UserError, match="belongs to another pack"):
        packed.checked_labels(LabelTable.of(np.array([0]), np.array([0]), 3))


def test_a_pack_without_labels_takes_its_classes_from_the_file(tmp_path: Path, monkeypatch) -> None:
    write_tree(tmp_path / "in", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    packed = pack(tmp_path / "p", f"all={tmp_path / 'in'}")
    (tmp_path / "l.csv").write_text("image,class\nb.jpg,owl\na.jpg,bee\n")
    arguments = ("import", packed.path, "--file", tmp_path / "l.csv", "--name", "l", "--new-classes")
    run(monkeypatch, *arguments)
    assert open_pack(packed.path).classes == ("bee", "owl")
    with pytest.raises(UserError, match="new_classes: expected --file without --classes"):
        run(monkeypatch, *arguments, "--classes", "x", "y")
