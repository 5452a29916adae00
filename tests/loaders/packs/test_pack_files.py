"""Manifest, index and label tables: refused contents, and that opening a pack takes no time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, StoreOptions, open_pack
from loaders.packs.columns import COLUMN_DTYPES, column_path
from loaders.packs.manifest import (
    FORMAT_VERSION,
    Manifest,
    SplitInfo,
    SplitRange,
    content_checksum,
    write_manifest,
)


def table(**changes) -> LabelTable:
    columns = {
        "row": np.array([1, 4, 9]),
        "label": np.array([2, 0, 1]),
        "confidence": np.array([1.0, 0.5, 0.25], np.float32),
        "source": np.array(["true", "pseudo", "pseudo"], object),
        "cycle": np.array([0, 1, 2], np.int32),
        "num_classes": 3,
    }
    return LabelTable(**{**columns, **changes})


def test_label_table_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "x.parquet"
    table().write(str(path))
    read = LabelTable.read(str(path))
    for name in ("row", "label", "confidence", "source", "cycle"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table(), name))
    assert read.num_classes == 3
    assert read.dense(10).tolist() == [-1, 2, -1, -1, 0, -1, -1, -1, -1, 1]
    empty = LabelTable.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    empty.write(path)
    assert LabelTable.read(path).dense(2).tolist() == [-1, -1]


def test_label_table_sorts_what_it_is_given() -> None:
    made = LabelTable.of(np.array([5, 2]), np.array([1, 0]), 2, np.array([0.9, 0.8]), "pseudo", cycle=3)
    assert made.row.tolist() == [2, 5]
    assert made.label.tolist() == [0, 1]
    np.testing.assert_allclose(made.confidence, [0.8, 0.9])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"label": np.array([2, 0, 3])}, "labels reach from 0 to 3, expected 0 to 2"),
        ({"label": np.array([2, -1, 1])}, "labels reach from -1"),
        ({"row": np.array([1, 1, 2])}, "strictly increasing"),
        ({"row": np.array([-1, 1, 2])}, "strictly increasing"),
        ({"row": np.array([1, 2])}, "differ in length"),
        ({"confidence": np.array([1, 2, 0.5], np.float32)}, r"in \[0, 1\]"),
        ({"confidence": np.array([1, np.nan, 0.5], np.float32)}, r"in \[0, 1\]"),
        ({"label": np.array([2.0, 0.0, 1.0])}, r"expected column label as int64 \[M\], found float64 \[3\]"),
        ({"row": [1, 4, 9]}, r"expected column row as int64 \[M\], found list"),
        ({"confidence": np.ones(3)}, r"expected column confidence as float32 \[M\], found float64 \[3\]"),
        (
            {"cycle": np.zeros((3, 1), np.int32)},
            r"expected column cycle as int32 \[M\], found int32 \[3, 1\]",
        ),
        ({"num_classes": 3.0}, "num_classes: expected a whole number of at least 0, found 3.0"),
    ],
)
def test_label_tables_out_of_range_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        table(**changes)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (([0, 1], [1.7, 0.2]), r"expected column label as whole numbers \[M\], found float64 \[2\]; round"),
        (([0, 1], [1.0, 0.0]), "expected column label as whole numbers"),
        (([0.0, 1.0], [1, 0]), "expected column row as whole numbers"),
        (([0, 1], [True, False]), "expected column label as whole numbers"),
        (([0, 1], ["1", "0"]), "expected column label as whole numbers"),
        (([0, 1], np.array([2**63, 0], np.uint64)), "label 9223372036854775808 is out of range"),
        (([0, 1], [1]), "one label and one confidence for each of 2 rows, found \\(1,\\)"),
        (([0, 1], [1, 0], 3, np.ones(1)), "one label and one confidence for each of 2 rows"),
    ],
)
def test_nothing_is_truncated_to_make_a_label_table(values: tuple, match: str) -> None:
    with pytest.raises(UserError, match=match):
        LabelTable.of(*values[:2], *(values[2:] or (3,)))


def test_label_tables_with_columns_of_another_type_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    table().write(path)
    whole = pq.read_table(path)
    for name, other in [("label", pa.float64()), ("row", pa.int32()), ("confidence", pa.float64())]:
        place = whole.schema.get_field_index(name)
        pq.write_table(whole.set_column(place, name, whole.column(name).cast(other)), path)
        with pytest.raises(UserError, match=f"expected column {name} as .*, found {other}; write"):
            LabelTable.read(path)


def test_label_tables_that_do_not_fit_are_refused(tmp_path: Path, digits_pack: Pack) -> None:
    with pytest.raises(UserError, match="expected rows below 5 as in the pack, found row 9"):
        table().dense(5)
    with pytest.raises(UserError, match="no label table at"):
        LabelTable.read(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is not a label table"):
        LabelTable.read(tmp_path / "bad.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row": [1], "label": [2]}), tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="is not a label table"):
        LabelTable.read(tmp_path / "foreign.parquet")
    mine = LabelTable.of(np.arange(3), np.arange(3), 10)
    assert digits_pack.split("unlabeled").labels(mine)[:5].tolist() == [0, 1, 2, -1, -1]
    for num_classes in (9, 11):
        other = LabelTable.of(np.arange(3), np.arange(3), num_classes)
        with pytest.raises(UserError, match=f"a table of the 10 classes of .*, found one of {num_classes}"):
            digits_pack.split("unlabeled").labels(other)


def test_no_pack(digits_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pack at .*none: make one with"):
        open_pack(tmp_path / "none")
    with pytest.raises(UserError, match=r"no pack at .*digit \(did you mean .*digits\?\): make one with"):
        open_pack(digits_pack.path.with_name("digit"))
    with pytest.raises(UserError, match=r"is not a pack: expected manifest.json"):
        open_pack(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web page has one too"}')
    with pytest.raises(UserError, match="expected an object with `format_version`"):
        open_pack(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        open_pack(tmp_path)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_are_no_packs(digits_pack: Pack, digits_beton_pack: Pack, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "x.jpg").write_bytes(digits_pack.read(0))
    (tmp_path / "empty").touch()
    shards = [digits_pack.shard_path(0), digits_beton_pack.shard_path(0)]
    others = [digits_pack.path / "manifest.json", tmp_path / "x.jpg", tmp_path / "empty", Path("/dev/null")]
    match = (
        "no object at file:///.*: check the URL"
        if scheme
        else "is not a pack: expected a folder .* found a file"
    )
    for path in [*shards, *others]:
        with pytest.raises(UserError, match=match):
            open_pack(f"{scheme}{path}", StoreOptions(tmp_path / "cache", tries=1))


@pytest.fixture
def copied(digits_pack: Pack, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_pack.path, tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    """Change a manifest together with its checksum, in order to test the other checks."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    raw["sha256"] = content_checksum(raw)
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(format_version=99), "format version 99, this Sluice reads 2: update Sluice"),
        (lambda m: m.update(format_version=1), "format version 1, this Sluice reads 2: pack again"),
        (lambda m: m.update(format_version="1"), "damaged"),
        (lambda m: m.update(num_images=5), "damaged .*the splits hold 3149 rows .* claims 5"),
        (lambda m: m.pop("classes"), "damaged"),
        (lambda m: m.update(surprise=1), "damaged"),
        (lambda m: m["splits"][1].update(name="test"), "damaged .*not distinct"),
        (lambda m: m["splits"][1].update(name="../x"), "damaged"),
        (lambda m: m["splits"][0]["ranges"][0].update(stop_row=7), "damaged .*tile"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "damaged .*outside"),
        (lambda m: m.update(shard_format="zip"), "damaged"),
    ],
)
def test_edited_manifests_are_refused(copied: Path, change, match: str) -> None:
    edit(copied, change)
    with pytest.raises(UserError, match=match):
        open_pack(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["classes"].reverse(),
        lambda m: m["splits"][0].update(source="elsewhere"),
        lambda m: m["options"].update(quality=50),
        lambda m: m.update(sha256="0"),
    ],
)
def test_a_manifest_edited_by_hand_is_refused(copied: Path, change) -> None:
    """Only the checksum can detect these edits; a different layout of the same content is accepted."""
    path, before = copied / "manifest.json", open_pack(copied).manifest
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw))
    assert open_pack(copied).manifest == before
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"manifest.json was edited or is damaged: its content differs"):
        open_pack(copied)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_never_crashes(copied: Path, data: st.DataObject) -> None:
    path = copied / "manifest.json"
    original = path.read_bytes()
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    message = ""
    try:
        pack = open_pack(copied)
        pack.key(len(pack) - 1)
    except UserError as error:
        message = str(error)
    finally:
        path.write_bytes(original)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["shard", "key_offset", "content_hash"])
def test_damaged_columns_are_refused(copied: Path, name: str) -> None:
    path = copied / column_path(name)
    data = path.read_bytes()
    for bad in (b"", data[:50], data[:-8], b"x" * 200):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"damaged|does not belong"):
            open_pack(copied)
    path.unlink()
    with pytest.raises(UserError, match="damaged"):
        open_pack(copied)


def test_a_missing_or_short_shard_is_named(copied: Path) -> None:
    pack = open_pack(copied)
    path = pack.shard_path(0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        UserError, match=r"unlabeled-000000.tar has 5000 bytes, row \d+ \(unlabeled/.*ends at"
    ):
        pack.read(400)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_pack(copied).read(0)


def test_opening_a_hundred_million_rows(tmp_path: Path) -> None:
    num_rows = 100_000_000
    (tmp_path / "index").mkdir()
    lengths = {"key_offset": num_rows + 1, "key_bytes": 1}
    for name, (dtype, row_shape) in COLUMN_DTYPES.items():  # sparse files: only their headers are written
        shape = (lengths.get(name, num_rows), *row_shape)
        np.lib.format.open_memmap(tmp_path / column_path(name), "w+", dtype, shape)
    rows = SplitRange(0, num_rows, 0, 30_000, 0)
    info = SplitInfo("train", "x", (rows,), num_rows, 0, 0)
    manifest = Manifest(FORMAT_VERSION, "webdataset", num_rows, 30_000, num_rows, 0, {}, (), (info,), {}, ())
    write_manifest(tmp_path, manifest)
    process = psutil.Process()
    before = process.memory_info().rss
    pack = open_pack(tmp_path)
    grown = process.memory_info().rss - before
    assert len(pack.split("train")) == num_rows
    assert pack.shard_path(29_999).name == "train-029999.tar"
    assert grown < 2**26, "opening reads headers; a byte of each row would be a hundred million"


def test_packing_needs_no_torch() -> None:
    """Each worker process imports the packer; torch would cost it seconds and half a gigabyte."""
    script = (
        "import sys, loaders.packs.packer\n"
        "print([name for name in ('torch', 'pyarrow', 'numba') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_files_are_synced_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.loaders.packs.inputs import class_tree, pack, write_tree

    write_tree(tmp_path / "in", class_tree(1, 3))
    synced: set[int] = set()
    replace = os.replace

    def checked(source, target) -> None:
        assert os.stat(source).st_ino in synced, f"{target} was renamed before it was synced"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", checked)
    for shard_format in ("webdataset", "ffcv"):
        pack(tmp_path / shard_format, f"train={tmp_path / 'in'}", shard_format=shard_format)
    assert len(synced) > 30
