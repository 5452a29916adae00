"""Every command that prepares labels ends with a line that suggests a training with valid options."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.packs import open_pack
from tests.in_process import run_script
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tree
from tests.next_line import read_next_line
from tools.command import first_training
from tools.command.first_training import say_training


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    splits = [
        f"{n}={write_tree(folder / n, class_tree(2, 6, seed=s))}" for n, s in (("train", 0), ("test", 90))
    ]
    out = pack(folder / "p", *splits).path
    (folder / "x.csv").write_text("row,label\n0,0\n1,1\n")
    assert (
        run_script("tools/labels.py", "import", out, "--file", folder / "x.csv", "--name", "x").returncode
        == 0
    )
    return out


@pytest.mark.parametrize(
    ("words", "table"),
    [
        ("import PACK --file PACK/../x.csv --name y", "y"),
        ("subsample PACK --split train --per-class 2 --name few", "few"),
        ("divide PACK --split train --validation 0.2 --name d", "d-train"),
        ("exclude PACK --split test --name known", "known"),
        ("compare PACK --first true --second x", "x"),
    ],
)
def test_a_table_is_trained_on(packed: Path, words: str, table: str) -> None:
    done = run_script("tools/labels.py", *words.replace("PACK", str(packed)).split())
    assert done.returncode == 0, done.stderr
    script, config = read_next_line(done.stdout)
    assert script == "recipes/supervised.py"
    assert (config.pack, config.labeled_split, config.test_split) == (packed, "", "test")
    assert config.extra_labels == (packed / "labels" / f"{table}.parquet",)
    assert config.extra_labels[0].is_file()
    if words.startswith("divide"):
        assert config.validation_split == str(packed / "labels" / "d-val.parquet")


def test_images_that_are_learnt_from_are_not_measured_on(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed.parent / "all.csv").write_text("row,label\n0,0\n12,1\n")  # row 12 is the first of `test`
    done = run_script("tools/labels.py", "import", packed, "--file", packed.parent / "all.csv", "--name", "a")
    assert read_next_line(done.stdout)[1].test_split == ""
    tree = write_tree(tmp_path / "one", class_tree(2, 3, seed=7))
    alone = pack(tmp_path / "one-pack", f"photos={tree}").path
    done = run_script(
        "tools/labels.py", "subsample", alone, "--split", "photos", "--per-class", "2", "--name", "f"
    )
    assert read_next_line(done.stdout)[1].test_split == ""
    say_training(open_pack(alone), alone)
    _, config = read_next_line(capsys.readouterr().out)
    assert (config.labeled_split, config.test_split) == ("photos", "")


def test_an_export_is_edited_and_read_back(packed: Path, tmp_path: Path) -> None:
    done = run_script("tools/labels.py", "export", packed, "--file", tmp_path / "l.csv")
    script, command = read_next_line(done.stdout)
    assert (script, command.pack, command.file) == ("tools/labels.py", packed, tmp_path / "l.csv")
    assert not (packed / "labels" / f"{command.name}.parquet").exists(), "the name is free"


@pytest.mark.parametrize(("side", "known"), [(80, True), (80, False), (40, True)])
def test_photographs_are_learnt_from_weights_that_know_others(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    side: int,
    known: bool,
) -> None:
    monkeypatch.setattr(first_training, "_WEIGHTS", "json" if known else "no_such_package")
    files = {
        split: {f"{kind}/{i}.jpg": jpeg(first + i, side, side) for kind in "ab" for i in range(3)}
        for split, first in (("train", 0), ("test", 50))
    }
    splits = [f"{split}={write_tree(tmp_path / split, files[split])}" for split in files]
    shown = pack(tmp_path / "p", *splits).path
    say_training(open_pack(shown), shown)
    script, config = read_next_line(capsys.readouterr().out)
    assert config.pack == shown
    assert script == ("tools/lite0_weights.py" if side == 80 and known else "recipes/supervised.py")


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = write_tree(tmp_path / "flat", {f"{name}.jpg": jpeg(seed) for seed, name in enumerate("ab")})
    bare = pack(tmp_path / "u", f"images={flat}").path
    say_training(open_pack(bare), bare)
    script, config = read_next_line(capsys.readouterr().out)
    assert (script, config.pack, config.split) == ("recipes/vicreg.py", bare, "images")
    done = run_script("tools/labels.py", "import", bare, "--classes", "cat", "dog")
    script, command = read_next_line(done.stdout)
    assert (script, command.pack) == ("tools/labels.py", bare)
    assert None not in (command.name, command.file)
