"""One PATH becomes several splits: equally for every kind of source and after a kill, and verified."""

import csv
import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

import tools.pack_dataset
import tools.verify_pack
from loaders.common.errors import UserError
from loaders.packs import Pack, open_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from tests.loaders.packs.inputs import class_tree, encoded, folder_hashes, jpeg, pixels, write_tar, write_tree

FILES = class_tree(2, 10) | {
    "c1/copy.jpg": jpeg(100),
    "c2/lone.jpg": jpeg(900),
    "c0/cut.jpg": b"\xff\xd8\xff",
}
SPLITS = ("train", "val", "test")


def contents(packed: Pack) -> dict[str, list[bytes]]:
    return {name: sorted(packed.read(row) for row in rows(packed, name)) for name in packed.splits}


def rows(packed: Pack, split: str) -> list[int]:
    part = packed.split(split)
    return part.rows(np.arange(len(part))).tolist()


def pack_divided(out: Path, source: Path | str, shares: str = "0.8,0.1,0.1", seed: int = 0) -> Pack:
    splits = parse_splits([f"{','.join(SPLITS)}={source}:{shares}"], seed)
    pack_dataset(PackOptions(splits, out, workers=2))
    return open_pack(out)


def sources(tmp_path: Path) -> dict[str, Path]:
    """The same images as a folder, a tar, a list of paths, and a table of images."""
    folder = write_tree(tmp_path / "in", FILES)
    write_tar(tmp_path / "in.tar", FILES)
    rows = [(f"in/{name}", name.partition("/")[0]) for name in FILES]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    table = {"image": list(FILES.values()), "label": [label for _, label in rows]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    return {
        "folder": folder,
        "tar": tmp_path / "in.tar",
        "list": tmp_path / "list.csv",
        "table": tmp_path / "table.parquet",
    }


def test_every_kind_of_source_is_divided_alike(tmp_path: Path) -> None:
    packs = {kind: pack_divided(tmp_path / kind, path) for kind, path in sources(tmp_path).items()}
    first = packs["folder"]
    assert {name: len(first.split(name)) for name in SPLITS} == {"train": 18, "val": 2, "test": 2}
    labels = np.array([np.bincount(first.split(name).labels(), minlength=3) for name in SPLITS])
    assert labels.tolist() == [[8, 9, 1], [1, 1, 0], [1, 1, 0]]
    for packed in packs.values():
        assert contents(packed) == contents(first)
    notes = " ".join(first.manifest.notes)
    shown = "c2 (1, none in val and test)"
    assert f"some classes have too few images for all of train, val, test: {shown}" in notes
    copies = [row for row in range(len(first)) if first.read(row) == jpeg(100)]
    assert len(copies) == 2
    assert len({int(first.columns.split[row]) for row in copies}) == 1
    assert first.manifest.splits[1].source == f"{tmp_path / 'in'}:0.8,0.1,0.1 (seed 0)"
    assert json.loads((first.path / "quarantine.jsonl").read_text())["name"] == "c0/cut.jpg"
    assert contents(pack_divided(tmp_path / "other", tmp_path / "in", seed=1)) != contents(first)


def test_the_same_bytes_after_a_kill(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", FILES)
    pack_divided(tmp_path / "whole", source)
    replace, steps = os.replace, 0
    for kill_at in range(1, 30):
        child = os.fork()
        if not child:

            def counted(old, new):
                nonlocal steps
                steps += 1
                if steps == kill_at:  # noqa: B023 - the child ends in this turn
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(old, new)

            os.replace = counted
            pack_divided(tmp_path / f"cut{kill_at}", source)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        pack_divided(tmp_path / f"cut{kill_at}", source)
        assert folder_hashes(tmp_path / f"cut{kill_at}") == folder_hashes(tmp_path / "whole")
    assert kill_at > 8


def test_near_copies_stay_together(tmp_path: Path) -> None:
    pictures = {i: Image.fromarray(pixels(i, 48, 64)) for i in range(24)}
    files = {f"c/{i}-{q}.jpg": encoded(p, "JPEG", quality=q) for i, p in pictures.items() for q in (70, 95)}
    write_tree(tmp_path / "in", files)
    text, apart = [f"train,test={tmp_path / 'in'}:0.5"], {}
    for near in (False, True):
        packed = tmp_path / str(near)
        pack_dataset(PackOptions(parse_splits(text, 0, near), packed, workers=1))
        opened = open_pack(packed)
        split_of = {Path(opened.key(row)).name: int(opened.columns.split[row]) for row in range(48)}
        apart[near] = sum(split_of[f"{i}-70"] != split_of[f"{i}-95"] for i in range(24))
    assert apart[False] > 4
    assert apart[True] == 0
    assert "48 images have copies or near copies" in " ".join(opened.manifest.notes)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (["train,test=in:0.8,0.1"], "must sum to 1, found 0.8,0.1"),
        (["train,test=in"], "expected shares behind the path of several splits"),
        (["train,train=in:0.5"], "split 'train' is given twice"),
        (["train=in", "train,test=in:0.5"], "split 'train' is given twice"),
        (["train,a b=in:0.5"], "split name 'a b'"),
        (["a,b,c=one:0.4,0.3"], "split 'c': expected at least one image of each part, found 2 images"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, monkeypatch, splits: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "in", class_tree(1, 4))
    write_tree(tmp_path / "one", class_tree(1, 2))
    with pytest.raises(UserError, match="(?s)" + said):
        pack_dataset(PackOptions(parse_splits(splits), tmp_path / "p", workers=1))
    assert not (tmp_path / "p").exists()


def command(monkeypatch: pytest.MonkeyPatch, tool, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    return tool.main()


def test_from_the_command_line_and_verified(tmp_path: Path, monkeypatch, capsys) -> None:
    source, out = write_tree(tmp_path / "in", FILES), tmp_path / "p"
    text = f"train,test={source}:0.8"
    arguments = ("--splits", text, "--out", out, "--seed", 3, "--workers", 1)
    assert command(monkeypatch, tools.pack_dataset, *arguments) == 0
    assert command(monkeypatch, tools.pack_dataset, *arguments) == 0
    with pytest.raises(UserError, match=r"splits .*seed 3.*now .*seed 4"):
        command(monkeypatch, tools.pack_dataset, *arguments[:5], 4)
    assert command(monkeypatch, tools.verify_pack, out, "--against", text) == 0
    assert "images of split test compared" in capsys.readouterr().out
    write_tree(source, {"c0/new.jpg": jpeg(7777)})
    assert command(monkeypatch, tools.verify_pack, out, "--against", text) == 1
    with pytest.raises(UserError, match="--seed is for a PATH that is divided"):
        command(
            monkeypatch, tools.pack_dataset, "--splits", f"a={source}", "--out", tmp_path / "q", "--seed", 1
        )


def test_quality_and_short_side_of_single_splits(tmp_path: Path, monkeypatch) -> None:
    files = {"c/large.jpg": jpeg(1, 80, 100), "c/small.jpg": jpeg(2, 20, 30)}
    source, out = write_tree(tmp_path / "in", files), tmp_path / "p"
    names = [f"{name}={source}" for name in ("a", "b", "c")]
    own = ["--quality", "a=60", "30", "--short-side", "a=40", "b=16", "--workers", 1]
    assert command(monkeypatch, tools.pack_dataset, "--splits", *names, "--out", out, *own) == 0
    packed = open_pack(out)
    sizes = packed.columns.height.reshape(3, 2).tolist()
    assert sizes == [[40, 20], [16, 16], [80, 20]]
    # Images within the limit are copied; without a limit, --quality re-encodes every image.
    assert packed.read(1) == files["c/small.jpg"]
    assert packed.read(5) == simplejpeg.encode_jpeg(
        simplejpeg.decode_jpeg(files["c/small.jpg"]), 30, "rgb", "420"
    )
    assert command(monkeypatch, tools.pack_dataset, "--splits", *names, "--out", out, *own) == 0
    own[1] = "a=61"
    with pytest.raises(UserError, match="split_options"):
        command(monkeypatch, tools.pack_dataset, "--splits", *names, "--out", out, *own)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--quality", ["d=90"], "expected one of the splits a"),
        ("--quality", ["high"], "expected a number"),
        ("--quality", ["a=--5"], "expected a number"),
        ("--quality", ["²"], "expected a number"),
        ("--quality", ["a=0"], "--quality 0: expected 1 to 100"),
        ("--short-side", ["a=8", "a=9"], "expected one value for a, found two"),
    ],
)
def test_wrong_values_of_single_splits(tmp_path: Path, monkeypatch, option, value, said) -> None:
    source = write_tree(tmp_path / "in", class_tree(1, 2))
    with pytest.raises(UserError, match=said):
        command(
            monkeypatch,
            tools.pack_dataset,
            "--splits",
            f"a={source}",
            "--out",
            tmp_path / "p",
            option,
            *value,
        )
    assert not (tmp_path / "p").exists()


def test_appending_a_divided_source(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "p"
    first = write_tree(tmp_path / "in", class_tree(2, 5))
    more = write_tree(tmp_path / "more", class_tree(2, 5, seed=500))
    assert command(monkeypatch, tools.pack_dataset, "--splits", f"base={first}", "--out", out) == 0
    text = f"train,test={more}:0.8"
    arguments = ("--splits", text, "--out", out, "--append", "--quality", "test=50", "--seed", 5)
    assert command(monkeypatch, tools.pack_dataset, *arguments) == 0
    assert {name: len(open_pack(out).split(name)) for name in ("base", "train", "test")} == {
        "base": 10,
        "train": 8,
        "test": 2,
    }
    other = write_tree(tmp_path / "other", class_tree(2, 5, seed=900))
    last = f"later,rest={other}:0.8"
    again = ("--splits", last, "--out", out, "--append", "--seed", 7)
    assert command(monkeypatch, tools.pack_dataset, *again) == 0
    for against in ((text,), (last,), (f"base={first}", text, last)):
        assert command(monkeypatch, tools.verify_pack, out, "--against", *against) == 0


def test_a_split_of_several_sources_is_compared_with_all_of_them(tmp_path: Path, monkeypatch, capsys) -> None:
    """Each divided source has its own seed; a quarantined image may share its name with another source's."""
    out, texts = tmp_path / "p", list[str]()
    for number, (names, seed) in enumerate((("train,test", 5), ("train", 0), ("train,test", 7))):
        files = {f"c{i % 2}/{number}-{i:02}.jpg": jpeg(100 * number + i) for i in range(10)}
        if number < 2:
            files["c0/same.jpg"] = (jpeg(1)[:-9], jpeg(2))[number]
            files["c0/cut.jpg"] = jpeg(10 + number)[:-9]
        source = write_tree(tmp_path / str(number), files)
        texts.append(f"{names}={source}" + (":0.8" if "," in names else ""))
        given = ("--splits", texts[-1], "--out", out, "--seed", seed, *(("--append",) if number else ()))
        assert command(monkeypatch, tools.pack_dataset, *given) == 0
    packed = open_pack(out)
    assert (len(packed), packed.manifest.num_quarantined) == (31, 3)
    assert command(monkeypatch, tools.verify_pack, out, "--against", *texts) == 0
    assert f"split train compared with {tmp_path / '0'} and {tmp_path / '1'} and" in capsys.readouterr().out
    assert command(monkeypatch, tools.verify_pack, out, "--against", *texts[:2]) == 1, "the last is missing"
    assert (
        f"inputs of split train are not in {tmp_path / '0'} and {tmp_path / '1'}," in capsys.readouterr().out
    )
    (tmp_path / "1" / "c1" / "late.jpg").write_bytes(jpeg(3))
    assert command(monkeypatch, tools.verify_pack, out, "--against", *texts) == 1
    assert "train/c1/late of" in capsys.readouterr().out


def test_a_tar_without_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "flat.tar", "w") as tar:
        for number in range(10):
            member, data = tarfile.TarInfo(f"{number}.jpg"), jpeg(number)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    packed = pack_divided(tmp_path / "p", tmp_path / "flat.tar")
    assert [len(packed.split(name)) for name in SPLITS] == [8, 1, 1]
    assert packed.manifest.num_inputs == 10
