"""Each image of the dataset layouts that users have gets the class that the layout implies, or none."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.append import append_to_pack
from loaders.packs.audit import compare_with_source
from loaders.packs.convert import convert_pack
from loaders.packs.labels.files import read_label_file
from loaders.packs.labels.multi_labels import MultiLabels
from loaders.packs.labels.subsample import few_labels
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.packs.sources.table_columns import ColumnOptions
from loaders.packs.verify import verify_pack
from tests.corpus.layouts import LAYOUTS
from tests.corpus.refused import REFUSED
from tests.corpus.writers import CAT, DOG, LAST, OTHER, beside, class_label, parquet
from tests.loaders.packs.inputs import pack, write_tar, write_tree
from tools.pack_dataset import print_summary


def content(packed: Pack) -> dict[bytes, str | None]:
    """Return the class of every image, by its bytes; None for no class."""
    labels = packed.labels.dense(len(packed))
    return {packed.read(r): packed.classes[labels[r]] if labels[r] >= 0 else None for r in range(len(packed))}


def summary(packed: Pack) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_summary(console, str(packed.path), packed.manifest, 1.0)
    return console.file.getvalue()


def sourced(root: Path, source: str) -> str:
    """Return a source PATH with the test's folder in front of each path that it contains."""
    prefix = "wds:" if source.startswith("wds:") else ""
    return f"{prefix}{root}/{source.removeprefix(prefix)}".replace("#labels=", f"#labels={root}/")


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_image_has_the_class_that_its_layout_means(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    packed = pack(tmp_path / "p", f"train={sourced(tmp_path, layout.source)}", columns=layout.columns)
    assert content(packed) == layout.classes
    lines = [line for line in summary(packed).splitlines() if line.startswith("note: ")]
    assert sum("only one class" in line for line in lines) == (len(packed.classes) == 1)
    notes = [line for line in lines if "only one class" not in line]
    assert any(layout.said in note for note in notes) if layout.said else not notes
    assert all(packed.classes.count(name) == 1 for name in packed.classes)
    split = parse_splits([f"train={sourced(tmp_path, layout.source)}"])[0]
    assert compare_with_source(packed, split) == []


def test_what_nobody_meant_is_in_the_quarantine_or_skipped(tmp_path: Path) -> None:
    LAYOUTS["zip of macos"].write(tmp_path)
    LAYOUTS["hidden folders"].write(tmp_path)
    packed = pack(tmp_path / "p", f"a={tmp_path / 'in'}", f"b={tmp_path / 'in.zip'}")
    lines = map(json.loads, (packed.path / "quarantine.jsonl").read_text().splitlines())
    assert {entry["name"]: (entry["code"], entry["reason"]) for entry in lines} == dict.fromkeys(
        [".ipynb_checkpoints/1-checkpoint.jpg", "dog/.ipynb_checkpoints/1.jpg", "@eaDir/1.jpg"],
        ("hidden", "in a hidden folder"),
    )
    # Skipped because of their names: ._1.jpg in the folder; .DS_Store, ._1.jpg and ._pets in the archive.
    assert {split.name: split.num_skipped for split in packed.manifest.splits} == {"a": 1, "b": 3}


def test_resource_forks_between_the_members_of_a_shard_are_skipped(tmp_path: Path) -> None:
    """Unless skipped, each would be a separate sample, without an image or with a broken one."""
    write_tar(tmp_path / "in.tar", {"._1.jpg": b"\0\5", "1.jpg": CAT, "._1.cls": b"\0\5", "1.cls": b"0"})
    packed = pack(tmp_path / "p", f"train=wds:{tmp_path / 'in.tar'}")
    (split,) = packed.manifest.splits
    assert (split.num_images, split.num_quarantined, split.num_skipped) == (1, 0, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_by_row_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    write, source, message = REFUSED[name]
    write(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        pack(tmp_path / "p", f"train={sourced(tmp_path, source)}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnOptions(label_column="race"), "no split has the column 'race' of --label-column"),
        (ColumnOptions(image_column="photo"), "has no column 'photo' for --image-column: it has path, breed"),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, columns: ColumnOptions, message: str) -> None:
    beside("l.csv", "path,breed\nin/a.jpg,cat\n")(tmp_path)
    with pytest.raises(UserError, match=message):
        pack(tmp_path / "p", f"train={tmp_path / 'l.csv'}", columns=columns)
    assert not (tmp_path / "p").exists()


def test_a_column_that_one_split_lacks_is_said(tmp_path: Path) -> None:
    beside("l.csv", "path,breed\nin/a.jpg,cat\n")(tmp_path)
    (tmp_path / "test.csv").write_text("path\nin/b.jpg\n")
    splits = (f"train={tmp_path / 'l.csv'}", f"test={tmp_path / 'test.csv'}")
    packed = pack(tmp_path / "p", *splits, columns=ColumnOptions(label_column="breed"))
    assert content(packed) == {CAT: "cat", DOG: None}
    assert "split test: no column 'breed': its images have no label" in summary(packed)


@pytest.mark.parametrize("options", [ColumnOptions(multi_label=True), ColumnOptions(image_column="x")])
def test_columns_of_a_folder_are_refused(tmp_path: Path, options: ColumnOptions) -> None:
    LAYOUTS["classes"].write(tmp_path)
    with pytest.raises(UserError, match="is for lists and tables, and no split is one"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}", columns=options)


def test_classes_that_one_split_alone_has_are_said(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {"train/cat/1.jpg": CAT, "train/dog/1.jpg": DOG, "test/cat/1.jpg": OTHER, "test/cow/1.jpg": LAST},
    )
    said = summary(pack(tmp_path / "p", f"train={tmp_path / 'train'}", f"test={tmp_path / 'test'}"))
    assert "note: no other split has 1 of the 2 classes of split train: dog" in said
    assert "note: no other split has 1 of the 2 classes of split test: cow" in said


def test_a_member_that_is_replaced_does_not_take_the_label(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a.jpg", DOG)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jpg", CAT)
    (tmp_path / "l.csv").write_text("file,label\na.jpg,0\n")
    assert content(pack(tmp_path / "p", f"train={tmp_path / 'in.zip'}#labels={tmp_path / 'l.csv'}")) == {
        CAT: "0"
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_several_labels_an_image_are_kept_and_refused_by_what_learns_classes(
    tmp_path: Path, kind: str
) -> None:
    several = ColumnOptions(multi_label=True)
    text = {
        "jsonl": '{"path": "in/a.jpg", "label": ["cat", "dog"]}\n{"path": "in/b.jpg", "label": []}\n',
        "csv": "path,label\nin/a.jpg,cat|dog\nin/gone.jpg,cat\nin/b.jpg,[]\n",
    }
    if kind == "parquet":
        feature = {"feature": class_label("cat", "dog"), "_type": "Sequence"}
        parquet("l.parquet", {"label": [[0, 1], []]}, {"label": feature})(tmp_path)
    else:
        beside(f"l.{kind}", text[kind])(tmp_path)
    packed = pack(tmp_path / "p", f"train={tmp_path / 'l'}.{kind}", columns=several)
    converted = tmp_path / "q"
    convert_pack(packed.path, converted, "ffcv")
    for path in (packed.path, converted):
        table = MultiLabels.read(path, 2)
        found = [table.of_row(row) for row in range(2)]
        assert [None if labels is None else labels.tolist() for labels in found] == [[0, 1], []]
        assert verify_pack(path, 1) == []
    assert packed.classes == ("cat", "dog")
    assert packed.split("train").labels().tolist() == [-1, -1]
    for refused in (packed.split("train").labeled_by, lambda: few_labels(packed.split("train"), None, 0)):
        with pytest.raises(UserError, match="has several labels per image"):
            refused()
    with pytest.raises(UserError, match="several labels per image: give --multi-label"):
        pack(tmp_path / "r", f"train=pack:{packed.path}")


def test_a_damaged_table_of_several_labels_is_one_line(tmp_path: Path) -> None:
    beside("l.csv", "path,label\nin/a.jpg,cat;dog\n")(tmp_path)
    packed = pack(tmp_path / "p", f"train={tmp_path / 'l.csv'}", columns=ColumnOptions(multi_label=True))
    path = packed.path / "labels" / "multi.parquet"
    tables = {
        "no labels": {"row": [0]},
        "high": {"row": [0], "labels": [[9]]},
        "twice": {"row": [0, 0], "labels": [[0]] * 2},
    }
    for columns in tables.values():
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=r"multi.parquet cannot be read .*: restore it or pack again"):
            MultiLabels.read(packed.path, 2)
        assert verify_pack(packed.path, 1) != []


def test_several_labels_grow_by_an_append(tmp_path: Path) -> None:
    several = ColumnOptions(multi_label=True)
    beside("l.csv", "path,label\nin/a.jpg,cat;dog\n")(tmp_path)
    (tmp_path / "m.csv").write_text("path,label\nin/b.jpg,cow;dog\n")
    pack(tmp_path / "p", f"train={tmp_path / 'l.csv'}", columns=several)
    more = parse_splits([f"more={tmp_path / 'm.csv'}"])
    with pytest.raises(UserError, match="multi_label True, now False"):
        append_to_pack(PackOptions(more, tmp_path / "p", workers=1))
    manifest = append_to_pack(PackOptions(more, tmp_path / "p", workers=1, columns=several))
    assert manifest.classes == ("cat", "dog", "cow")
    assert [MultiLabels.read(tmp_path / "p", 3).of_row(row).tolist() for row in range(2)] == [[0, 1], [2, 1]]


def test_notes_survive_an_interruption_and_are_said_again(tmp_path: Path, monkeypatch) -> None:
    import loaders.packs.packer as packer

    LAYOUTS["numbers as names"].write(tmp_path)
    options = PackOptions(parse_splits([f"train={tmp_path / 'in'}"]), tmp_path / "p", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(packer, "write_shards", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack_dataset(options)
    first, again = pack_dataset(options), pack_dataset(options)
    assert any("the class '1' is label 0" in note for note in first.notes)
    assert again.notes == first.notes


def test_a_number_that_may_be_a_name_is_refused(tmp_path: Path) -> None:
    LAYOUTS["numbers as names"].write(tmp_path)
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    (tmp_path / "l.csv").write_text("key,label\ntrain/1/1,1\n")
    with pytest.raises(
        UserError, match="label 1 may be class number 1 or the class named '1', which is number 0"
    ):
        read_label_file(tmp_path / "l.csv", packed, packed.split("train").row_ranges, "x")
    (tmp_path / "l.csv").write_text("key,class\ntrain/1/1,1\n")
    table = read_label_file(tmp_path / "l.csv", packed, packed.split("train").row_ranges, "x")
    assert np.asarray(table.label).tolist() == [0]
