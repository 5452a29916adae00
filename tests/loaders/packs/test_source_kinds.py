"""Every kind of source gives the same images, keys and labels as a folder of the same images."""

import errno
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.sources.label_file import read_label_array
from tests.loaders.packs.inputs import class_tree, encoded, folder_hashes, jpeg, pack, write_tar, write_tree

FILES = class_tree(3, 4)


def reasons(packed: Pack) -> dict[str, str]:
    lines = (packed.path / "quarantine.jsonl").read_text().splitlines()
    return {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}


def content(packed: Pack) -> dict[bytes, str | None]:
    """Return the class name of every image, by its bytes; None for no class."""
    labels = packed.labels.dense(len(packed))
    return {packed.read(r): packed.classes[labels[r]] if labels[r] >= 0 else None for r in range(len(packed))}


EXPECTED = {data: name.split("/")[0] for name, data in FILES.items()}
NUMBERED = {data: name[1] for data, name in EXPECTED.items()}


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["tar.gz", "tgz", "zip", "stored.zip"])
def test_archives_give_the_shards_of_their_folder(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "in", FILES)
    inside = {f"top/{name}": data for name, data in reversed(FILES.items())}
    path = tmp_path / f"in.{kind}"
    if kind.endswith("zip"):
        write_zip(path, inside, zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(gzip.compress(write_tar(tmp_path / "x.tar", inside).read_bytes()))
    pack(tmp_path / "a", f"train={tmp_path / 'in'}", shard_size_mb=0.01)
    packed = pack(tmp_path / "b", f"train={path}", shard_size_mb=0.01)
    assert folder_hashes(tmp_path / "a" / "shards") == folder_hashes(tmp_path / "b" / "shards")
    assert content(packed) == EXPECTED
    assert content(pack(tmp_path / "c", f"train={path}#top/c1")) == {
        d: None for d, label in EXPECTED.items() if label == "c1"
    }


def test_damaged_archives(tmp_path: Path) -> None:
    tar = gzip.compress(write_tar(tmp_path / "x.tar", FILES).read_bytes())
    (tmp_path / "cut.tar.gz").write_bytes(tar[: len(tar) // 2])
    with pytest.raises(UserError, match=r"cut.tar.gz is damaged or cut off"):
        pack(tmp_path / "p", f"train={tmp_path / 'cut.tar.gz'}")
    assert not (tmp_path / "p").exists()
    whole = write_zip(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"cut.zip is not a zip, or is damaged or cut off"):
        pack(tmp_path / "p", f"train={tmp_path / 'cut.zip'}")
    broken = bytearray(whole)
    broken[whole.index(FILES["c1/002.jpg"]) + 300] ^= 255
    (tmp_path / "broken.zip").write_bytes(broken)
    packed = pack(tmp_path / "p", f"train={tmp_path / 'broken.zip'}")
    assert reasons(packed) == {"c1/002.jpg": "damaged in its zip: the checksum differs"}


def test_webdataset_shards_are_repacked(tmp_path: Path) -> None:
    original = pack(tmp_path / "a", f"train={write_tree(tmp_path / 'in', FILES)}", shard_size_mb=0.01)
    assert original.num_shards > 1
    last = original.num_shards - 1
    for number, pattern in enumerate(("*.tar", f"train-{{000000..{last:06d}}}.tar")):
        packed = pack(tmp_path / f"b{number}", f"train=wds:{tmp_path / 'a' / 'shards' / pattern}")
        assert content(packed) == NUMBERED
        assert packed.classes == ("0", "1", "2")
        assert packed.key(0) == "train/train/c0/000"
    with pytest.raises(UserError, match=r"train-000004.tar: there is no such file"):
        pack(tmp_path / "c", f"train=wds:{tmp_path / 'a' / 'shards'}/train-{{000000..000004}}.tar")


def test_webdataset_labels_and_odd_samples(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "x.tar",
        {
            "a.jpg": jpeg(1), "a.json": b'{"label": "cat"}',
            "b.left.jpg": jpeg(2), "b.right.jpg": jpeg(3), "b.cls": b"dog\n",
            "c.cls": b"1",
            "sub/d.jpg": jpeg(4),
            "a.png": encoded_png(5),
        },
    )  # fmt: skip
    packed = pack(tmp_path / "p", f"train=wds:{tar}")
    assert content(packed)[jpeg(1)] == "cat"
    assert content(packed)[jpeg(3)] == "dog"
    assert content(packed)[jpeg(4)] is None
    assert [packed.key(r) for r in range(len(packed))] == [
        "train/a", "train/b%2F0", "train/b%2F1", "train/sub/d", "train/a%2F2",
    ]  # fmt: skip
    assert reasons(packed) == {"x.tar/c.cls": "a sample without an image: cls"}


def test_a_sample_whose_label_cannot_be_read_is_not_unlabelled(tmp_path: Path, monkeypatch) -> None:
    files = {"a.jpg": jpeg(1), "a.cls": b"1", "b.jpg": jpeg(2), "b.cls": b"0"}
    tar = write_tar(tmp_path / "x.tar", files)
    label_at, read = tar.read_bytes().index(b"a.cls") + 512, os.pread

    def pread(descriptor: int, num_bytes: int, offset: int) -> bytes:
        if offset == label_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, num_bytes, offset)

    monkeypatch.setattr(os, "pread", pread)
    packed = pack(tmp_path / "p", f"train=wds:{tar}")
    assert content(packed) == {jpeg(2): "0"}
    assert reasons(packed) == {"x.tar/a.jpg": f"its label cannot be read: {os.strerror(errno.EIO)}"}


def encoded_png(seed: int) -> bytes:
    from PIL import Image

    from tests.loaders.packs.inputs import pixels

    return encoded(Image.fromarray(pixels(seed)), "PNG")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_lists_of_paths(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "in", FILES)
    rows = [
        {"image_path": f"in/{name}", "label": name[1], "split": "test" if "3.jpg" in name else "train"}
        for name in FILES
    ] + [{"image_path": "in/gone.jpg", "label": "2", "split": "train"}]
    rows.append(dict(rows[0]))
    path = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        path.write_text("\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]) + "\n")
    packed = pack(tmp_path / "p", f"train={path}#train", f"test={path}#test", f"all={path}")
    assert content(packed) == NUMBERED
    assert [len(packed.split(name)) for name in packed.splits] == [9, 3, 12]
    assert packed.key(0) == "train/in/c0/000"
    assert reasons(packed) == {
        "in/gone.jpg": "in the list, but cannot be read: No such file or directory",
        "in/c0/000.jpg": "the same file was given before",
    }


def test_lists_keep_numbers_names_and_keys(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/x.jpg": jpeg(1), "b/x.jpg": jpeg(2), "b/y.jpg": jpeg(3)})
    path = tmp_path / "list.csv"
    path.write_text("file,class,key\na/x.jpg,11,k1\nb/x.jpg,2,k1\nb/y.jpg,-1,../k2.x\n")
    packed = pack(tmp_path / "p", f"train={path}")
    assert packed.split("train").labels().tolist() == [11, 2, -1]  # classes keep their numbers
    assert len(packed.classes) == 12
    assert [packed.key(r) for r in range(3)] == ["train/k1", "train/k1%2F2", "train/%2E%2E/k2%2Ex"]
    path.write_text("file,class\na/x.jpg,dog\nb/x.jpg,cat\nb/y.jpg,\n")
    packed = pack(tmp_path / "q", f"train={path}")
    assert packed.classes == ("cat", "dog")
    assert packed.split("train").labels().tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("picture,label\na.jpg,1\n", r"has the columns picture, label: expected one of path, file"),
        ("path,label\na.jpg\n", r"expected 2 cells, one per column, found 1; correct it"),
        ("path,label\na.jpg,-2\n", r"label -2 is out of range"),
        ("path,label\n,1\n", r"row 1: no path"),
        ('path,label\n"a.jpg,1\n', r"cannot be read as a list"),
        ("path,label\nna\udcefve.jpg,1\n", r"expected UTF-8 text; save it as such, .* CSV UTF-8$"),
        ("path,label\na.jpg,1\n#none", r"list.csv.*no row has the split 'none'|no column for the split"),
        ("", r"holds no file"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, match: str) -> None:
    text, _, split = text.partition("#")
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    source = f"train={tmp_path / 'list.csv'}" + (f"#{split}" if split else "")
    with pytest.raises(UserError, match=match) as caught:
        pack(tmp_path / "p", source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "p").exists()


def hugging_face_table(names: list[str] | None = None) -> pa.Table:
    images = [{"bytes": data, "path": name} for name, data in FILES.items()]
    table = pa.table({"image": images, "label": [int(name[1]) for name in FILES]})
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_tables_of_images(tmp_path: Path) -> None:
    names = ["zebra", "ape", "cow"]
    table = hugging_face_table(names)
    pq.write_table(table, tmp_path / "t-0.parquet", row_group_size=5)
    with pa.ipc.new_stream(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    with pa.ipc.new_file(tmp_path / "f.arrow", table.schema) as writer:
        writer.write_table(table)
    expected = {data: names[int(number)] for data, number in NUMBERED.items()}
    for place, name in enumerate(("t-0.parquet", "t.arrow", "f.arrow", "t-*.parquet")):
        packed = pack(tmp_path / f"p{place}", f"train={tmp_path / name}", shard_size_mb=0.01, workers=2)
        assert packed.classes == tuple(names)  # ordered by the source's class numbers
        assert content(packed) == expected
        assert packed.key(3) == "train/00000003"
    pq.write_table(hugging_face_table(), tmp_path / "u.parquet")
    assert content(pack(tmp_path / "q", f"train={tmp_path / 'u.parquet'}")) == NUMBERED
    plain = pa.table({"png": [encoded_png(1), None], "split": ["a", "a"]})
    pq.write_table(plain, tmp_path / "v.parquet")
    packed = pack(tmp_path / "r", f"train={tmp_path / 'v.parquet'}#a")
    assert reasons(packed) == {"v.parquet/1": "an empty cell"}
    (tmp_path / "w.parquet").write_bytes((tmp_path / "u.parquet").read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be read as a table"):
        pack(tmp_path / "s", f"train={tmp_path / 'w.parquet'}")


def test_betons_are_converted_back(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", FILES)
    pack(tmp_path / "a", f"train={tmp_path / 'in'}", shard_format="ffcv", shard_size_mb=0.01)
    packed = pack(tmp_path / "b", f"train={tmp_path / 'a' / 'shards' / '*.beton'}")
    assert content(packed) == NUMBERED
    assert packed.key(0) == "train/train-000000/00000000"


@pytest.mark.parametrize("kind", [".pt", ".npy", ".csv", ".parquet"])
def test_labels_beside_a_folder(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "in", {f"{i}.jpg": jpeg(i) for i in range(12)})
    labels = (np.arange(12) * 7) % 5
    path = tmp_path / f"labels{kind}"
    if kind == ".pt":
        torch.save(torch.from_numpy(labels), path)
    elif kind == ".npy":
        np.save(path, labels)
    elif kind == ".parquet":
        pq.write_table(pa.table({"file": [f"{i}.jpg" for i in range(12)], "label": labels}), path)
    else:
        path.write_text("file,label\n" + "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels)))
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={path}")
    got = {packed.read(r): label for r, label in enumerate(packed.split("train").labels().tolist())}
    assert got == {jpeg(i): label for i, label in enumerate(labels.tolist())}  # 10.jpg has label 10


def test_labels_in_the_order_of_names(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"b.jpg": jpeg(1), "a.jpg": jpeg(0), "notes.txt": b"x", "c.jpg": jpeg(2)})
    np.save(tmp_path / "l.npy", np.array([[3], [1], [-1]]))
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={tmp_path / 'l.npy'}")
    assert packed.split("train").labels().tolist() == [3, 1, -1]


@pytest.mark.parametrize(
    "kind", ["labels.csv", "labels.jsonl", "labels.parquet", "list.csv", "table.parquet"]
)
def test_whole_numbers_with_a_point_are_numbers(tmp_path: Path, kind: str) -> None:
    """With an empty cell a table stores 10 as 10.0; as text, "10.0" would sort before "2.0"."""
    write_tree(tmp_path / "in", {f"{i}.jpg": jpeg(i) for i in range(4)})
    path, labels = tmp_path / kind, [None, 10.0, 2.0, float("nan")]
    if kind == "table.parquet":
        pq.write_table(pa.table({"image": [jpeg(i) for i in range(4)], "label": labels}), path)
        source = str(path)
    else:
        rows = [
            {"file": f"in/{i}.jpg"[3 * kind.startswith("labels") :], "label": labels[i]} for i in range(4)
        ]
        if kind.endswith(".csv"):
            path.write_text("file,label\n" + "".join(f"{r['file']},{r['label'] or ''}\n" for r in rows[:3]))
        elif kind.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        source = f"{tmp_path / 'in'}#labels={path}" if kind.startswith("labels") else str(path)
    packed = pack(tmp_path / "p", f"train={source}")
    labelled = packed.split("train").labels().tolist()
    assert labelled[:3] == [-1, 10, 2]
    assert labelled[3:] in ([], [-1])


def test_labels_in_an_order_that_cannot_be_told(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.arange(3))
    write_tree(tmp_path / "in", {f"img_{i}.jpg": jpeg(i) for i in (1, 2, 10)})
    with pytest.raises(UserError, match=r"img_10.jpg comes before img_2.jpg by name and after it by number"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={tmp_path / 'l.npy'}")
    assert not (tmp_path / "p").exists()
    write_tree(tmp_path / "ok", {"a-b/01.jpg": jpeg(1), "a/10.jpg": jpeg(2), "b/002.jpg": jpeg(3)})
    packed = pack(tmp_path / "q", f"train={tmp_path / 'ok'}#labels={tmp_path / 'l.npy'}")
    assert len(packed) == 3


def test_images_that_a_label_list_leaves_out_have_no_label(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "c.jpg": jpeg(2)})
    (tmp_path / "l.csv").write_text("file,label\na.jpg,1\nc.jpg,\n")
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={tmp_path / 'l.csv'}")
    assert packed.split("train").labels().tolist() == [1, -1, -1]


def test_bad_label_files(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})

    class Loud:
        def __reduce__(self):
            return (print, ("this must never run",))

    cases = {
        "short.npy": (np.array([1]), "has 1 labels, the source has 2 images"),
        "float.npy": (np.array([0.5, 1.0]), "expected one integer label per image"),
        "wide.npy": (np.zeros((2, 3), int), r"int64 \[2, 3\]: expected one integer"),
        "low.npy": (np.array([0, -7]), "label -7 is out of range"),
        "high.npy": (np.array([0, 2**64 - 1], np.uint64), "label 18446744073709551615 is out of range"),
    }
    for name, (array, match) in cases.items():
        np.save(tmp_path / name, array)
        with pytest.raises(UserError, match=match):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={tmp_path / name}")
    torch.save({"labels": Loud()}, tmp_path / "code.pt")
    buffer = io.BytesIO()
    np.save(buffer, np.array([Loud()], object), allow_pickle=True)
    (tmp_path / "code.npy").write_bytes(buffer.getvalue())
    (tmp_path / "unknown.csv").write_text("file,label\na.jpg,1\nz.jpg,1\n")
    (tmp_path / "twice.csv").write_text("file,label\na.jpg,1\na.jpg,2\n")
    (tmp_path / "wrong.csv").write_text("file,points\na.jpg,1\n")
    (tmp_path / "low.csv").write_text("file,label\na.jpg,-2\nb.jpg,0\n")
    (tmp_path / "empty.csv").write_text("")
    for name, match in {
        "code.pt": "not a tensor that can be read without running code in it",
        "code.npy": "expected a .npy of integers, found another file",
        "unknown.csv": "labels 1 files that are not in the source, e.g. z.jpg",
        "twice.csv": "labels a.jpg twice",
        "wrong.csv": "has the columns file, points",
        "low.csv": "label -2 is out of range",
        "empty.csv": "empty.csv labels no file",
        "none.csv": "there is no such file",
    }.items():
        with pytest.raises(UserError, match=match):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}#labels={tmp_path / name}")
        assert not (tmp_path / "p").exists()


def test_remote_paths(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for name, data in FILES.items():
        fs.pipe_file(f"/bucket/tree/{name}", data)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    fs.pipe_file("/bucket/x.tar", buffer.getvalue())
    fs.pipe_file("/bucket/list.csv", b"path,label\n" + b"".join(f"tree/{n},{n[1]}\n".encode() for n in FILES))
    write_tree(tmp_path / "in", FILES)
    pack(tmp_path / "a", f"train={tmp_path / 'in'}")
    for place, source in enumerate(("memory://bucket/tree", "memory://bucket/x.tar")):
        packed = pack(tmp_path / f"b{place}", f"train={source}")
        assert content(packed) == EXPECTED
        assert folder_hashes(packed.path / "shards") == folder_hashes(tmp_path / "a" / "shards")
    assert content(pack(tmp_path / "c", "train=memory://bucket/list.csv")) == NUMBERED
    with pytest.raises(UserError, match=r"memory://bucket/none.tar cannot be fetched"):
        pack(tmp_path / "d", "train=memory://bucket/none.tar")
    with pytest.raises(UserError, match="a store that fsspec knows"):
        pack(tmp_path / "d", "train=nonsense://bucket/x.tar")
    with pytest.raises(UserError, match="holds no file"):
        pack(tmp_path / "d", "train=memory://bucket/empty")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_called_a_tensor_is_one_line_and_no_warning(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps([1, 2], protocol=protocol))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"x.pt (is not a tensor|holds)"):
            read_label_array(tmp_path / "x.pt")
    assert said == []
