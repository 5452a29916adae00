"""tools/labels.py: tables return what was put into them, and no shard is changed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.append import append_to_pack
from loaders.packs.convert import convert_pack
from loaders.packs.labels.subsample import read_label_table, validation_part
from loaders.packs.packer import PackOptions
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tree
from tools import labels as tool


@pytest.fixture
def packed(tmp_path: Path) -> Pack:
    write_tree(tmp_path / "in", class_tree(3, 10))
    write_tree(tmp_path / "more", class_tree(3, 2, seed=500))
    return pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"test={tmp_path / 'more'}")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["labels.py", *map(str, arguments)])
    tool.main()


def table(packed: Pack, name: str) -> LabelTable:
    return LabelTable.read(packed.path / "labels" / f"{name}.parquet")


@pytest.mark.parametrize("suffix", ["csv", "npy", "pt"])
def test_round_trip(packed: Pack, tmp_path: Path, monkeypatch, suffix: str) -> None:
    before = folder_hashes(packed.path / "shards")
    for split in ([], ["--split", "test"]):
        path = tmp_path / f"out{len(split)}.{suffix}"
        run(monkeypatch, "export", packed.path, "--file", path, *split)
        run(monkeypatch, "import", packed.path, "--file", path, "--name", f"back{len(split)}", *split)
    np.testing.assert_array_equal(table(packed, "back0").dense(36), packed.labels.dense(36))
    back = table(packed, "back2").dense(36)
    np.testing.assert_array_equal(back[30:], packed.labels.dense(36)[30:])
    assert set(back[:30].tolist()) == {-1}
    assert set(table(packed, "back0").source) == {"import"}
    assert folder_hashes(packed.path / "shards") == before
    if suffix == "pt":
        assert torch.load(tmp_path / "out2.pt", weights_only=True).tolist() == [0, 0, 1, 1, 2, 2]


def test_tables_know_their_pack(packed: Pack, tmp_path: Path, monkeypatch) -> None:
    """A pack of equally many other images refuses a table; the same pack, grown or converted, accepts it."""
    run(monkeypatch, "subsample", packed.path, "--split", "train", "--per-class", 2, "--name", "few")
    path = packed.path / "labels" / "few.parquet"
    few = table(packed, "few")
    assert len(few.images) == 32
    write_tree(tmp_path / "other", class_tree(3, 10, seed=900))
    other = pack(tmp_path / "q", f"train={tmp_path / 'other'}", f"test={tmp_path / 'more'}")
    said = "found those of other images in the same rows; it belongs to another pack"
    with pytest.raises(UserError, match=f"label table {path}: .*{said}"):
        read_label_table(other, path)
    with pytest.raises(UserError, match=f"labels: .*{said}"):
        other.split("train").labels(few)
    (other.path / "labels" / "few.parquet").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "exclude", other.path, "--split", "test", "--name", "x", "--table", "few")
    unsigned = tmp_path / "unsigned.parquet"
    few.of_rows(few.row).write(unsigned)  # as older versions wrote tables
    assert len(read_label_table(other, unsigned)) == 6
    append_to_pack(PackOptions(parse_splits([f"late={tmp_path / 'other'}"]), packed.path, workers=1))
    convert_pack(packed.path, tmp_path / "beton", "ffcv")
    for same in (open_pack(packed.path), open_pack(tmp_path / "beton")):
        assert read_label_table(same, path).row.tolist() == few.row.tolist()
    many = LabelTable.of(np.arange(100_000), np.arange(100_000) % 3, 3)
    hashes = np.random.default_rng(0).integers(0, 1 << 60, (100_000, 2), np.uint64)
    assert many.digest(hashes) == many.digest(hashes.copy())
    assert many.digest(hashes) != many.digest(np.roll(hashes, 1, axis=0))


def test_subsets_are_nested_and_stay_in_the_split(packed: Pack, monkeypatch) -> None:
    for k in (1, 2, 4):
        options = ("--split", "train", "--per-class", k, "--seed", 3, "--name", f"few{k}")
        run(monkeypatch, "subsample", packed.path, *options)
    tables = [table(packed, f"few{k}") for k in (1, 2, 4)]
    assert [np.bincount(t.label).tolist() for t in tables] == [[1] * 3, [2] * 3, [4] * 3]
    assert set(tables[0].row) < set(tables[1].row) < set(tables[2].row)
    assert tables[2].row.max() < 30
    with pytest.raises(UserError, match="exists: choose another --name"):
        run(monkeypatch, "subsample", packed.path, "--split", "train", "--per-class", "1", "--name", "few1")


def test_divide_and_compare(packed: Pack, monkeypatch, capsys) -> None:
    run(monkeypatch, "divide", packed.path, "--split", "train", "--validation", "0.3", "--name", "d")
    train, val = table(packed, "d-train"), table(packed, "d-val")
    assert np.bincount(val.label).tolist() == [3, 3, 3]
    assert sorted([*train.row, *val.row]) == list(range(30))
    moved = LabelTable.of(val.row, (val.label + (val.row == val.row[0])) % 3, 3)
    moved.write(packed.path / "labels" / "moved.parquet")
    capsys.readouterr()
    run(monkeypatch, "compare", packed.path, "--first", "true", "--second", "moved")
    out = capsys.readouterr().out
    assert "they agree on 88.89% of 9 images" in out
    assert f"differs: {packed.key(int(val.row[0]))}: c0 / c1" in out


def test_divide_in_three_with_copies_on_one_side(tmp_path: Path, monkeypatch, capsys) -> None:
    files = class_tree(2, 10) | {f"c0/copy{i}.jpg": jpeg(i) for i in range(5)} | {"c2/lone.jpg": jpeg(999)}
    packed = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', files)}")
    options = ("--split", "train", "--validation", 0.2, "--test", 0.2, "--name", "d")
    run(monkeypatch, "divide", packed.path, *options)
    assert "c2 (1, none in val and test)" in capsys.readouterr().err
    parts = [table(packed, f"d-{name}") for name in ("train", "val", "test")]
    assert np.bincount(parts[1].label).tolist() == [3, 2]
    assert sorted(np.concatenate([part.row for part in parts])) == list(range(26))
    contents = [{packed.read(row) for row in part.row} for part in parts]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 21
    with pytest.raises(UserError, match=r"test: expected less than 0\.5"):
        run(monkeypatch, "divide", packed.path, *options[:3], 0.5, "--test", 0.5, "--name", "e")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("key,label\ntrain/c0/999,1\n", "no image called 'train/c0/999'"),
        ("row,label\n36,1\n", r"row '36', expected 0 to 35"),
        ("row,label\n1.5,1\n", r"row '1.5', expected 0 to 35"),
        ("row,label\n0,1.5\n", r"no class '1.5'"),
        ("row,label\n0,3\n", "label 3 is out of range, expected 0 to 2"),
        ("row,label\n0,zebra\n", r"no class 'zebra'; it has c0, c1, c2"),
        ("row,label\n0,1\n0,2\n", r"row 0 \(train/c0/000\) is labelled twice"),
        ("row,points\n0,1\n", "has the columns row, points: expected a name, key or row of each image"),
    ],
)
def test_bad_imports(packed: Pack, tmp_path: Path, monkeypatch, text: str, match: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        run(monkeypatch, "import", packed.path, "--file", tmp_path / "x.csv", "--name", "x")
    assert not (packed.path / "labels" / "x.parquet").exists()
    np.save(tmp_path / "x.npy", np.zeros(5, int))
    with pytest.raises(UserError, match="has 5 labels, expected 36, one per image"):
        run(monkeypatch, "import", packed.path, "--file", tmp_path / "x.npy", "--name", "x")


@pytest.fixture
def unlabelled(tmp_path: Path) -> Pack:
    write_tree(tmp_path / "flat", {f"{name}.jpg": jpeg(seed) for seed, name in enumerate("abcd")})
    return pack(tmp_path / "u", f"train={tmp_path / 'flat'}")


def test_a_pack_without_labels_takes_classes_and_labels(
    unlabelled: Pack, tmp_path: Path, monkeypatch, capsys
) -> None:
    manifest = (unlabelled.path / "manifest.json").read_bytes()
    (tmp_path / "x.csv").write_text("row,label\n0,dog\n2,1\n3,cat\n")
    given = ("import", unlabelled.path, "--file", tmp_path / "x.csv", "--name", "x")
    with pytest.raises(
        UserError, match="made without labels and has no classes to label with; name them with"
    ):
        run(monkeypatch, *given)
    run(monkeypatch, *given, "--classes", "cat", "dog", "très petit")
    again = open_pack(unlabelled.path)
    assert again.classes == ("cat", "dog", "très petit")
    assert table(again, "x").dense(4).tolist() == [1, -1, 1, 0]
    assert again.split("train").labels(table(again, "x")).tolist() == [1, -1, 1, 0]
    assert (again.labels.num_classes, len(again.labels)) == (3, 0)
    assert verify_pack(again.path) == []
    assert (again.path / "manifest.json").read_bytes() == manifest, "runs know the pack by it"
    (tmp_path / "names.txt").write_text("cat\ndog\n\ntrès petit\n", encoding="utf-8")
    run(monkeypatch, "import", unlabelled.path, "--classes", tmp_path / "names.txt")
    assert "3 classes, cat, dog, très petit" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"classes: expected those of the pack, cat, dog, .* found dog, cat;"):
        run(monkeypatch, "import", unlabelled.path, "--classes", "dog", "cat")
    write_tree(tmp_path / "more", {"cat/1.jpg": jpeg(90), "emu/1.jpg": jpeg(91)})
    options = PackOptions(parse_splits((f"more={tmp_path / 'more'}",)), unlabelled.path, workers=1)
    append_to_pack(options)
    grown = open_pack(unlabelled.path)
    assert grown.classes == ("cat", "dog", "très petit", "emu"), "the numbers of the labels stay"
    assert grown.split("more").labels().tolist() == [0, 3]


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (("cat",), "expected two names or more, or a text file with one per line, found 'cat'"),
        (("cat", "cat"), "expected two or more different class names, found 'cat' twice"),
        (("cat", " "), "expected two or more different class names, found 2, one empty"),
        (("cat", "dog"), "the pack has no class 'zebra'; it has cat, dog"),
    ],
)
def test_bad_classes_leave_nothing(
    unlabelled: Pack, tmp_path: Path, monkeypatch, classes: tuple[str, ...], match: str
) -> None:
    before = folder_hashes(unlabelled.path)
    (tmp_path / "x.csv").write_text("row,label\n0,zebra\n")
    given = ("--file", tmp_path / "x.csv", "--name", "x")
    with pytest.raises(UserError, match=match):
        run(monkeypatch, "import", unlabelled.path, *given, "--classes", *classes)
    for missing in (given[:2], given[2:], ()):
        with pytest.raises(UserError, match="import: expected --file and --name, --classes, or all three"):
            run(monkeypatch, "import", unlabelled.path, *missing)
    assert folder_hashes(unlabelled.path) == before
    path = unlabelled.path / "labels" / "classes.json"
    for content in (b"[1, 2]", b"{", b'["a", "a"]'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"classes\.json"):
            open_pack(unlabelled.path)


def test_a_pack_with_classes_keeps_them(packed: Pack, monkeypatch) -> None:
    with pytest.raises(UserError, match="classes: expected those of the pack, c0, c1, c2, found a, b;"):
        run(monkeypatch, "import", packed.path, "--classes", "a", "b")
    assert not (packed.path / "labels" / "classes.json").exists()


def test_exclude_leaves_out_rows_and_copies(tmp_path: Path, monkeypatch, capsys) -> None:
    write_tree(tmp_path / "in", class_tree(2, 4))
    write_tree(tmp_path / "test", class_tree(2, 2, seed=500) | {"c0/copy.jpg": jpeg(102)})
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"test={tmp_path / 'test'}")
    run(monkeypatch, "exclude", packed.path, "--split", "test", "--name", "known")
    assert table(packed, "known").row.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert "left out: 5 rows and 1 copies of split 'test'" in capsys.readouterr().out


def test_every_class_keeps_both_parts() -> None:
    labels = np.array([0, 0, 1, 1, 1, -1, -1])
    for share in (0.01, 0.5, 0.99):
        part = validation_part(labels, share, 0)
        assert not part[5:].any()
        for label in (0, 1):
            assert 0 < part[labels == label].sum() < (labels == label).sum()
    with pytest.raises(UserError, match="at least 2 labelled images"):
        validation_part(np.array([0, 1]), 0.5, 0)
    assert validation_part(np.array([0, 1, 1]), 0.5, 0).tolist()[0] is False


def test_labels_of_another_pack_go_by_key(packed: Pack, tmp_path: Path, monkeypatch) -> None:
    """The other pack numbers its rows differently, so an exported table's row numbers do not apply."""
    write_tree(tmp_path / "in", {"a/new.jpg": jpeg(77)})
    other = pack(tmp_path / "q", f"train={tmp_path / 'in'}", f"test={tmp_path / 'more'}")
    run(monkeypatch, "export", packed.path, "--file", tmp_path / "x.csv")
    run(monkeypatch, "import", other.path, "--file", tmp_path / "x.csv", "--name", "back")
    back = table(other, "back")
    assert len(back) == len(packed) == len(other) - 1
    assert back.label.tolist() == other.labels.dense(len(other))[back.row].tolist()


@pytest.mark.parametrize(
    ("text", "label"),
    [("row,class\n0, 2\n", 2), ("row,class\n0,1\n1,-1\n", 0), ("row,class\n0,0\n", None)],
)
def test_a_number_is_the_name_of_a_class_where_classes_are_numbers(
    tmp_path: Path, monkeypatch, text: str, label: int | None
) -> None:
    files = {f"{c}/0.jpg": data for c, data in zip((1, 2, 10), class_tree().values(), strict=False)}
    packed = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', files)}")
    (tmp_path / "x.csv").write_text(text)
    command = ("import", packed.path, "--file", tmp_path / "x.csv", "--name", "x")
    if label is None:
        with pytest.raises(UserError, match=r"has no class '0'; it has 1, 10, 2"):
            run(monkeypatch, *command)
        return
    run(monkeypatch, *command)
    assert (table(packed, "x").row.tolist(), table(packed, "x").label.tolist()) == ([0], [label])


def test_classes_called_by_numbers_survive_a_list(tmp_path: Path, monkeypatch) -> None:
    write_tree(
        tmp_path / "in",
        {f"{c}/0.jpg": data for c, data in zip((1, 2, 10), class_tree().values(), strict=False)},
    )
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    assert packed.classes == ("1", "10", "2")
    run(monkeypatch, "export", packed.path, "--file", tmp_path / "x.csv")
    run(monkeypatch, "import", packed.path, "--file", tmp_path / "x.csv", "--name", "back")
    np.testing.assert_array_equal(table(packed, "back").dense(3), packed.labels.dense(3))
