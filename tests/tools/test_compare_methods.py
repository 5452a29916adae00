"""The comparison as a command: it measures, keeps to its budget, and goes on where it stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.packs import Pack
from tools.compare_methods import Config
from tools.comparison.results import read_lines

ROOT = Path(__file__).parents[2]


def start(out: Path, pack: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "tools/compare_methods.py"), "--pack", str(pack), "--out", str(out)]
    few = ["--budget-s", "2", "--calibration-steps", "2", "20"]
    return subprocess.run(
        [*script, *few, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # the limit of a test is nearer
        check=False,
    )


def compare(out: Path, pack: Path, *arguments: str) -> str:
    ran = start(out, pack, *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_self_supervised_methods(digits_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "selfsup", "--labels-per-class", "2", "--probe-labels-per-class", "20")
    compare(tmp_path, digits_pack.path, *options, "--methods", "rotnet")
    stages = sorted((tmp_path / "records").glob("*.json"))
    written = {path: path.stat().st_mtime_ns for path in stages}
    shown = compare(tmp_path, digits_pack.path, *options, "--methods", "rotnet")
    assert {path: path.stat().st_mtime_ns for path in stages} == written
    records = {record["kind"]: record for record in read_lines(tmp_path / "records.jsonl")}
    assert records.keys() == {"start_up", "cost", "pretraining", "frozen", "fine_tuned"}
    trained = records["pretraining"]
    assert trained["predicted_s"] <= 2 + trained["start_up_s"]
    assert 0.0 < trained["cpu_s"] < 20.0  # what it took depends on what else the machine does
    assert str(tmp_path) not in trained["command"]
    assert "| RotNet |" in shown
    assert "| untrained / from scratch |" in shown


def test_methods_with_labels_seed_after_seed(digits_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "semisup", "--labels-per-class", "4")
    records = tmp_path / "kept" / "all.jsonl"
    kept = ("--records", str(records), "--methods")
    compare(tmp_path / "first", digits_pack.path, *options, *kept, "supervised", "active")
    first = list(read_lines(records))
    trained = [r for r in first if r["kind"] == "trained"]
    assert {r["method"]: len(r["commands"]) for r in trained} == {"supervised": 1, "active": 3}
    assert all(0.0 < r["top1"] < 1.0 for r in trained)  # how good depends on the machine
    # Another folder goes on from the records: no second calibration, as many steps, the next seed.
    seeds = ("--seeds", "0", "1")
    shown = compare(tmp_path / "second", digits_pack.path, *options, *seeds, *kept, "supervised")
    both = list(read_lines(records))
    added = [r for r in both if r not in first]
    assert len(both) == len(first) + 1
    assert [(r["method"], r["seed"]) for r in added] == [("supervised", 1)]
    assert added[0]["steps"] == next(r["steps"] for r in trained if r["method"] == "supervised")
    assert "(1 of 2)" in next(line for line in shown.splitlines() if line.startswith("| Active labels"))
    assert records.with_suffix(".md").read_text().strip() in shown


def test_a_pack_with_too_few_labels_is_refused_before_any_work(digits_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "semisup", "--labels-per-class", "4", "100000")
    ended = start(tmp_path, digits_pack.path, *options)
    assert ended.returncode == 2
    message = "error: labels per class: expected at most "
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected names among supervised, .*, found barlow"):
        Config(family="semisup", pack=tmp_path, out=tmp_path, budget_s=1.0, methods=("barlow",))
    with pytest.raises(UserError, match="two increasing calibration_steps"):
        Config(family="selfsup", pack=tmp_path, out=tmp_path, budget_s=1.0, calibration_steps=(5, 5))
