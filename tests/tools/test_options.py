"""Wrong options and wrong inputs of the tools end in one line with exit code 2, and leave nothing behind."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loaders.common.errors import run_command
from tests.loaders.packs.inputs import class_tree, pack, write_tree

VIEWS = ("PACK", "--resolution", "16", "--num-images", "2", "--draws", "1")
DRAW = ("--num-images", "4", "--num-classes", "2", "--workers", "1")
OBJECTIVES = ("--batch-size", "4", "--embedding", "4", "--classes", "2", "--runs", "1")
SELECT = ("--rows", "50", "--classes", "4", "--top-k", "2", "--per-class", "3", "--chunk", "16")
LOADERS = ("--pack", "PACK", "--peers", "--limits", "--seconds", "0.1", "--runs", "1")
FEW = ("subsample", "PACK", "--split", "train", "--per-class", "2", "--name", "few")
HALVES = ("divide", "PACK", "--split", "train", "--validation", "0.5", "--name", "half")
IMPORT = ("import", "PACK", "--name", "new", "--file")

# PACK, FILE, FOLDER, BYTES and RUN stand for paths that the fixture makes; NEW for a path without a file.
WRONG: list[tuple[str, tuple[str, ...], str]] = [
    ("labels", (*IMPORT, "FILE"), "expected labels in .pt"),
    ("labels", (*IMPORT, "PLACE/empty.csv"), "expected at least one label, found none"),
    ("labels", (*IMPORT, "PLACE/sparse.pt"), "holds a tensor of layout|is not a tensor"),
    ("labels", (*IMPORT, "PLACE/meta.pt"), "on meta: expected a label per image"),
    ("labels", ("import", "PACK", "--file", "PLACE/ok.csv", "--name", "n" * 300), "cannot be a file"),
    ("labels", ("export", "PACK", "--file", "FILE/x.csv"), "expected a folder at .*, found the file"),
    ("labels", (*FEW, "--seed", "-1"), "seed: expected a whole number"),
    ("labels", (*FEW, "--seed", str(2**70)), "seed: expected a whole number"),
    ("labels", (*FEW, "--per-class", "0"), "per_class: expected more than 0"),
    ("labels", (*HALVES, "--validation", "nan"), "validation: expected a finite number"),
    ("labels", (*HALVES, "--seed", "-1"), "seed: expected a whole number"),
    ("convert_pack", ("FOLDER", "--out", "NEW", "--format", "ffcv"), "not a pack"),
    ("convert_pack", ("PACK", "--out", "FILE/x", "--format", "ffcv"), "FILE"),
    ("convert_pack", ("PACK", "--out", "NEW", "--format", "ffcv", "--shard-size-mb", "nan"), "shard"),
    ("convert_pack", ("PACK", "--out", "NEW", "--format", "ffcv", "--workers", "-1"), "workers"),
    ("inspect_pack", ("FOLDER",), "not a pack"),
    ("inspect_pack", ("PACK", "--workers", "-1"), "workers: expected a whole number"),
    ("inspect_pack", ("PAGELESS",), "expected a file at .*report.html, found a folder"),
    ("pack_dataset", ("--splits", "train=/nowhere", "--out", "NEW"), "/nowhere"),
    ("verify_pack", ("FILE",), "not a pack"),
    ("verify_pack", ("PACK", "--workers", "-1"), "workers: expected a whole number"),
    ("verify_pack", ("PACK", "--against", "train"), "NAME=PATH"),
    ("plot_bench", ("FOLDER", "--out", "NEW.svg"), "expected a file of records"),
    ("plot_bench", ("BYTES", "--out", "NEW.svg"), "line 1: expected a record"),
    ("plot_bench", ("PLACE/half_record", "--out", "NEW.svg"), "line 1: expected a record"),
    ("plot_bench", ("docs/records/loaders-intel-barlow-full-224.jsonl", "--out", "PLACE/x.svg"), "found a f"),
    ("plot_bench", ("docs/records/loaders-intel-barlow-full-224.jsonl", "--out", "FILE/x.svg"), "the file"),
    ("show_views", (*VIEWS, "--out", "FOLDER"), "expected a file at .*, found a folder"),
    ("show_views", (*VIEWS, "--out", "FILE/x.png"), "found the file"),
    ("show_views", (*VIEWS, "--out", "NEW.png", "--seed", "-1"), "seed: expected a whole number"),
    ("show_views", (*VIEWS, "--out", "NEW.png", "--gain", "nan"), "gain: expected a finite number"),
    ("show_views", (*VIEWS, "--out", "NEW.png", "--tile", "-1"), "tile: expected a whole number"),
    ("show_views", (*VIEWS, "--out", "NEW.png", "--tile", "1000000"), "tile: .* from 16 to 1024"),
    ("draw_images", ("--out", "FILE/x", *DRAW), "found the file"),
    ("draw_images", ("--out", "FOLDER", *DRAW), "exists"),
    ("draw_images", ("--out", "NEW", *DRAW, "--seed", "-1"), "seed: expected a whole number"),
    ("draw_images", ("--out", "NEW", *DRAW, "--workers", "-1"), "workers: expected a whole number"),
    ("draw_images", ("--out", "NEW", *DRAW, "--resolution", "100000"), "resolution: .* from 16 to 256"),
    ("draw_images", ("--out", "NEW", *DRAW, "--num-images", "0"), "num_images: expected more than 0"),
    ("report", ("--run", "FOLDER"), "expected a run"),
    ("report", ("--run", "RUN", "--num-images", "-1"), "num_images: expected a whole number"),
    ("report", ("--run", "RUN", "--out", "FOLDER"), "expected a file at .*, found a folder"),
    ("report", ("--run", "RUN", "--out", "FILE/x.html"), "found the file"),
    ("report", ("--run", "RUN", "--commands", "BYTES"), "expected UTF-8 text"),
    ("probe", ("--run", "RUN", "--pack", "PACK"), "expected a file at .*backbone.safetensors"),
    ("probe", ("--run", "VIEWLESS", "--pack", "PACK"), "evaluation, found the file"),
    ("probe", ("--run", "UNEVALUATED", "--pack", "PACK", "--temperature", "nan"), "temperature: expected"),
    ("bench_objectives", (*OBJECTIVES, "--embedding", "-1"), "embedding: expected a whole number"),
    ("bench_objectives", (*OBJECTIVES, "--classes", "0"), "classes: expected more than 0"),
    ("bench_objectives", (*OBJECTIVES, "--json", "FOLDER"), "json: expected a file"),
    ("bench_select", (*SELECT, "--chunk", "0"), "chunk: expected more than 0"),
    ("bench_select", (*SELECT, "--runs", "0"), "runs: expected more than 0"),
    ("bench_select", (*SELECT, "--rows", "-1"), "rows: expected a whole number"),
    ("bench_select", (*SELECT, "--json", "FILE/x.jsonl"), "json: expected a folder"),
    ("bench_memory", ("PACK", "--epochs", "0"), "epochs: expected more than 0, found 0"),
    ("bench_memory", ("PACK", "--json", "FOLDER"), "json: expected a file"),
    ("bench_transcode", ("--images", "FOLDER"), "holds no JPEG"),
    ("bench_transcode", ("--images", "FOLDER", "--num-images", "0"), "num_images: expected more than 0"),
    ("bench_transcode", ("--images", "FOLDER", "--short-side", "-1"), "short_side: expected a whole number"),
    ("bench_transcode", ("--images", "FOLDER", "--passes", "0"), "passes: expected more than 0"),
    ("bench_transcode", ("--images", "FOLDER", "--json", "FILE/x"), "json: expected a folder"),
    ("bench_packing", ("--source", "FOLDER"), "holds no files"),
    ("bench_packing", ("--source", "PLACE"), "expected class folders, found the file"),
    ("bench_packing", ("--source", "FOLDER", "--runs", "0"), "runs: expected more than 0"),
    ("bench_packing", ("--source", "FOLDER", "--max-side", "0"), "max_side: expected more than 0"),
    ("bench_packing", ("--source", "FOLDER", "--workers", "-1"), "workers: expected a whole number"),
    ("bench_packing", ("--source", "FOLDER", "--writers"), "writers: expected some of"),
    ("bench_packing", ("--source", "FOLDER", "--scratch", "FILE"), "scratch: expected a folder"),
    ("bench_packing", ("--source", "FOLDER", "--json", "FOLDER"), "json: expected a file"),
    ("bench_loaders", (*LOADERS, "--seconds", "nan"), "seconds: expected a finite number"),
    ("bench_loaders", (*LOADERS, "--cache", "FILE"), "cache: expected a folder"),
    ("bench_loaders", (*LOADERS, "--json", "FOLDER"), "json: expected a file"),
    (
        "bench_loaders",
        (*LOADERS, "--num-threads", "9999"),
        "num_threads: .*, found 9999; contenders are bound",
    ),
    ("bench_training", ("--pack", "PACK", "--window", "0"), "window: expected more than 0"),
    ("bench_training", ("--pack", "PACK", "--num-threads", "0"), "num_threads: expected more than 0"),
    ("bench_training", ("--pack", "PACK", "--json", "FOLDER"), "json: expected a file"),
    ("bench_scale", ("--work", "FILE"), "work: expected a folder"),
    ("bench_scale", ("--work", "NEW", "--stages", "open"), "no pack"),
    ("bench_scale", ("--work", "NEW", "--stages", "synthetic"), "no pack"),
    ("bench_scale", ("--work", "NEW", "--workers", "-1"), "workers: expected a whole number"),
    ("bench_guarantees", ("--pack", "PACK", "--json", "FOLDER"), "json: expected a file"),
    ("label_sweep", ("--pack", "PACK", "--out", "FILE", "--methods", "a=supervised"), "found the file"),
    ("label_sweep", ("--pack", "PACK", "--out", "NEW", "--methods", "..=supervised"), "expected NAME=RECIPE"),
    ("label_sweep", ("--pack", "PACK", "--out", "NEW", "--methods", "a=supervised 'x"), "expected NAME=REC"),
    ("label_sweep", ("--pack", "FOLDER", "--out", "NEW", "--methods", "a=supervised"), "not a pack"),
    (
        "label_sweep",
        ("--pack", "PACK", "--out", "NEW", "--methods", "a=supervised", "--seeds", "-1"),
        "seeds: expected a whole number",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack, and with files and folders of the wrong kind for a tool's options."""
    place = tmp_path_factory.mktemp("options")
    write_tree(place / "in", class_tree(2, 8))
    for name in ("PACK", "PAGELESS"):
        pack(place / name, f"train={place / 'in'}")
    (place / "PAGELESS" / "report.html").unlink(missing_ok=True)
    for folder in ("FOLDER", "x.svg", "PAGELESS/report.html", "RUN", "VIEWLESS", "UNEVALUATED"):
        (place / folder).mkdir()
    (place / "FILE").write_text("text")
    (place / "BYTES").write_bytes(b"\xff\xfe")
    (place / "empty.csv").write_text("row,label\n")
    (place / "ok.csv").write_text("row,label\n0,1\n")
    (place / "half_record").write_text(
        json.dumps({"contender": "a", "workload": {"views": "b"}, "benchmark": "c"})
    )
    torch.save(torch.ones(16).to_sparse(), place / "sparse.pt")
    torch.save(torch.ones(16, dtype=torch.int64, device="meta"), place / "meta.pt")
    (place / "VIEWLESS" / "evaluation").write_text("")
    (place / "UNEVALUATED" / "evaluation.json").write_text('{"rows": [], "config": {}}')
    for run in ("RUN", "VIEWLESS", "UNEVALUATED"):
        (place / run / "config.json").write_text('{"recipe": "r", "config": {}, "versions": {}}')
    return place


def content(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


def filled(place: Path, arguments: tuple[str, ...]) -> Iterator[str]:
    names = {path.name for path in place.iterdir()} | {"NEW"}
    for argument in arguments:
        first = argument.split("/")[0].split(".")[0]
        in_place = argument.removeprefix("PLACE").removeprefix("/") if first == "PLACE" else argument
        yield str(place / in_place) if first == "PLACE" or first in names else argument


@pytest.mark.parametrize(
    ("tool", "arguments", "message"), WRONG, ids=[f"{row[0]}-{number}" for number, row in enumerate(WRONG)]
)
def test_what_is_wrong_is_said_in_one_line(
    tool: str,
    arguments: tuple[str, ...],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = importlib.import_module(f"tools.{tool}")
    before = content(place)
    monkeypatch.setattr("sys.argv", [tool, *filled(place, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_command(module.main)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    line, *more = printed.err.splitlines()
    assert not more, printed.err
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert printed.out.strip() == printed.out, "an empty line where a bar would be"
    assert content(place) == before, "something is left behind"


def test_neither_half_is_written_where_one_of_them_exists(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(tmp_path / "pack", f"train={place / 'in'}")
    taken = made.path / "labels" / "half-val.parquet"
    taken.write_bytes(b"mine")
    arguments = [str(made.path) if name == "PACK" else name for name in HALVES]
    monkeypatch.setattr("sys.argv", ["labels", *arguments])
    with pytest.raises(SystemExit):
        run_command(importlib.import_module("tools.labels").main)
    assert sorted(path.name for path in taken.parent.iterdir()) == ["half-val.parquet", "true.parquet"]


def test_a_pack_whose_shards_are_gone_differs_from_its_manifest(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = pack(tmp_path / "pack", f"train={place / 'in'}")
    for path in (made.path / "shards").iterdir():
        path.unlink()
    (made.path / "shards").rmdir()
    monkeypatch.setattr("sys.argv", ["verify_pack", str(made.path)])
    with pytest.raises(SystemExit) as ended:
        run_command(importlib.import_module("tools.verify_pack").main)
    assert ended.value.code == 1
    assert "differs: shards/" in capsys.readouterr().out
