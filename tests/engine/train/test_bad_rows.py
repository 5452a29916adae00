"""Unreadable rows are counted, and listed once with their reasons, also over a resume."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from engine.train.bad_rows import BadRowRecorder, read_bad_rows
from engine.train.metrics import read_metrics
from tests.engine.ranks import run_ranks
from tests.engine.synthetic import SyntheticLoader, train_small


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    loader = SyntheticLoader()
    loader.before_step = lambda epoch, step: loader.bad_rows.update({5: "row 5: cut"} if step == 1 else {})
    train_small(out, loader=loader, max_steps=3)
    assert read_bad_rows(out) == {5: "row 5: cut"}
    assert [r.get("num_bad_rows") for r in read_metrics(out / "metrics.jsonl")] == [None, 1, 1]
    with (out / "bad_rows.jsonl").open("a") as file:
        file.write('{"row": 9, "rea')  # a line cut off by a kill
    again = SyntheticLoader()
    again.bad_rows = {2: "row 2: empty", 5: "row 5: cut"}
    train_small(out, loader=again, resume=True)
    lines = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [5, 2]


def recorded(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Let rank 1 alone read a bad row, then both ranks another; return the counts."""
    loader = SyntheticLoader(rank=rank, num_ranks=num_ranks)
    counts = []
    with tempfile.TemporaryDirectory() as folder:  # only rank 0's folder is used
        recorder = BadRowRecorder(Path(folder), loader, "cpu")
        counts.append(recorder.update())
        loader.bad_rows = {3: "row 3"} if rank == 1 else {}
        counts.append(recorder.update())
        loader.bad_rows = {**loader.bad_rows, 4: "row 4"}
        counts.append(recorder.update())
        rows = torch.tensor(sorted(read_bad_rows(Path(folder))), dtype=torch.int64)
    return {"counts": torch.tensor(counts), "rows": rows}


def test_no_other_way_reads_a_whole_loader() -> None:
    """Code that measures or predicts must use `read_in_order`, which reports unreadable rows."""
    root = Path(__file__).parents[3]
    files = [file for folder in ("engine", "recipes", "tools") for file in (root / folder).rglob("*.py")]
    readers = {file.relative_to(root).as_posix() for file in files if ".epoch(" in file.read_text()}
    loop = {f"engine/train/{name}.py" for name in ("bad_rows", "loop", "finite", "measured")}
    measuring = ("bench_memory", "bench_guarantees", "bench/backends", "bench/stages", "gpu/training")
    speed = {f"tools/{name}.py" for name in measuring}
    pictures = {f"tools/{name}.py" for name in ("show_views", "draw_operations", "export", "predict")}
    pictures |= {f"engine/report/{name}.py" for name in ("run_page", "feature_maps")}
    before = {"engine/train/whiten.py"}  # reads the loop's loader, whose bad rows the loop records
    assert readers == loop | speed | pictures | before | {"tools/peers/airbench.py"}


def test_the_rows_of_all_ranks_are_named_once() -> None:
    first, second = run_ranks(recorded, 2)
    assert first["counts"].tolist() == second["counts"].tolist() == [0, 1, 2]
    assert first["rows"].tolist() == [3, 4]
