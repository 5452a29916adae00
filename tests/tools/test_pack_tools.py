"""The command-line tools for packs: exit codes, one-line errors, and what verification finds."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.packs import Pack, open_pack
from loaders.packs.manifest import content_checksum
from loaders.packs.verify import verify_pack
from tests.in_process import ROOT, run_script
from tests.loaders.packs.inputs import jpeg, write_tree
from tools.write_digits import write_digits


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(f"tools/{tool}.py", *arguments)


def test_pack_and_verify(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a/0.jpg": jpeg(0), "b/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)[:-50]})
    out = tmp_path / "pack"
    source = tmp_path / "in"
    packed = run("pack_dataset", "--splits", f"train={source}", f"test={source}", "--out", out)
    assert packed.returncode == 0, packed.stderr
    assert "2 classes; 2 webdataset shards; 4 copied" in packed.stdout
    assert f"2 inputs quarantined, reasons in {out}/quarantine.jsonl" in packed.stdout.replace("\n", "")
    again = run("pack_dataset", "--splits", f"train={source}", f"test={source}", "--out", out)
    assert f"nothing to do: this command has finished {out} before" in again.stdout.replace("\n", "")
    assert "copied" not in again.stdout
    assert "images/s" not in again.stdout
    whole = run("verify_pack", out)
    assert whole.returncode == 0, whole.stderr
    assert "is whole" in whole.stdout
    shard = open_pack(out).shard_path(1)
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(bytes(data))
    damaged = run("verify_pack", out)
    assert damaged.returncode == 1
    assert "shards/test-000000.tar: content differs from its checksum" in damaged.stdout
    assert "1 of 2 images differ from their content hash or CRC-32, rows 2 (test/a/0)" in damaged.stdout


def test_appending_says_how_many_inputs_are_new(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {f"a/{number}.jpg": jpeg(number) for number in range(3)})
    write_tree(tmp_path / "new", {"b/0.jpg": jpeg(3), "b/1.jpg": jpeg(4)})
    out = tmp_path / "pack"
    first = run("pack_dataset", "--splits", f"train={tmp_path / 'in'}", "--out", out)
    assert "\n3 inputs in " in first.stdout
    more = run("pack_dataset", "--splits", f"new={tmp_path / 'new'}", "--out", out, "--append")
    assert "\n2 inputs added to 3 in " in more.stdout
    beside = run(
        "pack_dataset", "--splits", f"more={tmp_path / 'new'}", "--out", tmp_path / "none", "--append"
    )
    assert (beside.returncode, len(beside.stderr.splitlines())) == (2, 1)


def test_one_class_alone_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"cats/0.jpg": jpeg(0), "cats/1.jpg": jpeg(1)})
    packed = run("pack_dataset", "--splits", f"train={tmp_path / 'in'}", "--out", tmp_path / "pack")
    assert "1 class; " in packed.stdout
    assert "note: only one class, 'cats'" in packed.stdout


def test_a_whole_pack_may_lack_what_its_source_has(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "pack"
    write_tree(source, {"a/0.jpg": jpeg(0), "b/1.jpg": jpeg(1)})
    assert run("pack_dataset", "--splits", f"train={source}", "--out", out).returncode == 0
    same = run("verify_pack", out, "--against", f"train={source}")
    assert same.returncode == 0, same.stderr
    assert f"2 images of split train compared with {source}: nothing is missing" in same.stdout
    write_tree(source, {"b/2.jpg": jpeg(2)})
    lacks = run("verify_pack", out, "--against", f"train={source}")
    assert lacks.returncode == 1
    assert f"train/b/2 of {source} is neither packed nor quarantined" in lacks.stdout
    assert "is whole" in lacks.stdout
    assert "differs from its source" in lacks.stderr
    assert "damaged" not in lacks.stdout + lacks.stderr


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("verify_pack", ["missing"], "error: no pack at missing"),
        (
            "verify_pack",
            ["s3://b/p"],
            "error: pack: expected a folder of this machine, found the URL s3://b/p",
        ),
        ("pack_dataset", ["--splits", "a=missing", "--out", "x"], "error: no images at missing"),
        ("pack_dataset", ["--splits", "a=tests", "a=tools", "--out", "x"], "error: split 'a' is given twice"),
        ("write_digits", ["--out", "tools"], "error: tools exists"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(tool: str, arguments: list[str], message: str) -> None:
    result = run(tool, *arguments)
    assert result.returncode == 2
    assert result.stderr.strip().startswith(message)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (ROOT / "x").exists()


def test_a_pack_may_have_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a/0.jpg": jpeg(0)})
    out = tmp_path / os.fsdecode(b"p\xff")
    for tool, arguments in (
        ("pack_dataset", ["--splits", f"train={tmp_path / 'in'}", "--out", out]),
        ("verify_pack", [out]),
        ("inspect_pack", [out]),
    ):
        done = run(tool, *arguments)
        assert done.returncode == 0, done.stderr
        assert "p\\udcff" in done.stdout.replace("\n", "")


def test_verify_finds_a_flipped_bit_in_any_file(digits_beton_pack: Pack, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits_beton_pack.path, tmp_path / "copy"))
    assert verify_pack(folder) == []
    rng = np.random.default_rng(0)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    assert len(files) > 12
    for path in files:
        original = path.read_bytes()
        if not original:
            continue
        for place in {0, len(original) - 1, int(rng.integers(len(original)))}:
            damaged = bytearray(original)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(damaged))
            found = verify_pack(folder)
            assert found, f"{path.name}: bit {place} flipped unnoticed"
            assert path.name in found[0]
        path.write_bytes(original)
    assert verify_pack(folder) == []


def test_verify_finds_missing_and_foreign_files(digits_pack: Pack, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits_pack.path, tmp_path / "copy"))
    shard = open_pack(folder).shard_path(0)
    shutil.copy(shard, shard.with_name("train-000099.tar"))
    assert verify_pack(folder) == ["shards/train-000099.tar: belongs to no shard or column of the manifest"]
    shard.with_name("train-000099.tar").unlink()
    shard.unlink()
    assert verify_pack(folder) == [f"shards/{shard.name}: missing"]


@pytest.mark.parametrize("name", ["offset", "content_hash", "crc32"])
def test_verify_does_not_trust_a_consistent_forgery(digits_pack: Pack, tmp_path: Path, name: str) -> None:
    """Index and manifest are changed consistently, so that only content hashes and CRC-32 reveal it."""
    import hashlib

    folder = Path(shutil.copytree(digits_pack.path, tmp_path / "copy"))
    path = folder / "index" / f"{name}.npy"
    column = np.load(path)
    column[[10, 11]] = column[[11, 10]]
    np.save(path, column)
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == f"index/{name}.npy":
            file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            file["size_bytes"] = path.stat().st_size
    manifest["sha256"] = content_checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (found,) = verify_pack(folder)
    assert "2 of" in found
    assert "rows 10 (unlabeled/" in found


def test_digits_are_the_same_every_time(digits_folder: Path, tmp_path: Path) -> None:
    assert write_digits(tmp_path / "again") == {"train": 1352, "test": 445}
    names = sorted(path.relative_to(digits_folder) for path in digits_folder.rglob("*.jpg"))
    assert len(names) == 1797
    for name in names:
        assert (digits_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    image = simplejpeg.decode_jpeg((digits_folder / names[0]).read_bytes())
    assert image.shape == (32, 32, 3)
    assert image.max() > 200
