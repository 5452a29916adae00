"""The comparison as a command: it measures, keeps to its budget, and resumes where it stopped."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tyro
from rich.console import Console

from engine.evaluate.few_labels import SCRATCH, FewLabelResult, write_results
from loaders.common.errors import UserError
from loaders.common.locks import alone_in
from loaders.packs import Pack
from tests.in_process import ROOT, run_script
from tests.tools.comparison.test_methods import parsed
from tools import compare_methods
from tools.compare_methods import Config, run
from tools.comparison import bench, selfsup, semisup
from tools.comparison.bench import Failures
from tools.comparison.cpu_budget import CommandFailed
from tools.comparison.methods import BACKBONE, TRAININGS
from tools.comparison.results import Record, read_lines, stage_of

pytestmark = pytest.mark.usefixtures("blank_drawings")

FEW = ("--budget-s", "2", "--calibration-steps", "2", "20")
FEWER = ("--budget-s", "1.4", "--calibration-steps", "1", "3")  # for simulated times
NOTHING = ("--table-only", "--calibrate-only")  # together: neither measurement nor table
Compare = Callable[..., str]


def start(out: Path, pack: Path, *arguments: str) -> str:
    """Compare as a user does: scripts run in forks, and real processor time counts."""
    command = [sys.executable, str(ROOT / "tools/compare_methods.py"), "--pack", str(pack), "--out", str(out)]
    ran = subprocess.run(
        [*command, *FEW, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # the test's own limit is shorter
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def run_here(out: Path, pack: Path, *arguments: str) -> str:
    """Compare in this process."""
    shown = io.StringIO()
    config = tyro.cli(Config, args=["--pack", str(pack), "--out", str(out), *FEWER, *arguments])
    assert run(config, Console(file=shown, width=200)) == 0, shown.getvalue()
    return shown.getvalue()


def seconds_by_steps(script: str, arguments: Sequence[str], log: Path) -> float:
    """Run a script briefly in this process; return simulated seconds, which depend only on its steps.

    `tests/tools/comparison/test_cpu_budget.py` tests the real function that this one replaces.
    """
    if script == "recipes/transfer.py":
        arguments = (*arguments, "--pretrained.steps", "2", "--from-scratch.steps", "2")
    arguments = ["test_resnet" if word == BACKBONE else word for word in arguments]  # three times faster
    ended = run_script(script, *arguments)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(ended.stdout + ended.stderr)
    if ended.returncode:
        raise CommandFailed(ended.stderr)
    return 1.0 + 0.1 * int(arguments[arguments.index("--steps") + 1]) if "--steps" in arguments else 0.5


@pytest.fixture(params=["here", pytest.param("as a command", marks=pytest.mark.slow)])
def compare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compare:
    if request.param == "as a command":
        return start
    monkeypatch.setattr(bench, "cpu_seconds", seconds_by_steps)
    monkeypatch.setattr(compare_methods, "preload", lambda num_threads: None)
    return run_here


def test_self_supervised_methods(compare: Compare, little_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "selfsup", "--labels-per-class", "2", "--probe-labels-per-class", "20")
    compare(tmp_path, little_pack.path, *options, "--methods", "rotnet")
    stages = sorted((tmp_path / "records").glob("*.json"))
    written = {path: path.stat().st_mtime_ns for path in stages}
    shown = compare(tmp_path, little_pack.path, *options, "--methods", "rotnet")
    assert {path: path.stat().st_mtime_ns for path in stages} == written
    records = {record["kind"]: record for record in read_lines(tmp_path / "records.jsonl")}
    assert records.keys() == {"start_up", "cost", "pretraining", "frozen", "fine_tuned"}
    trained = records["pretraining"]
    assert trained["predicted_s"] <= 2 + trained["start_up_s"]
    assert 0.0 < trained["cpu_s"] < 20.0  # depends on the machine's load
    assert str(tmp_path) not in trained["command"]
    assert "| RotNet |" in shown
    assert "| untrained / from scratch |" in shown


def test_methods_with_labels_seed_after_seed(compare: Compare, little_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "semisup", "--labels-per-class", "4")
    records = tmp_path / "kept" / "all.jsonl"
    kept = ("--records", str(records), "--methods")
    compare(tmp_path / "first", little_pack.path, *options, *kept, "supervised", "active")
    first = list(read_lines(records))
    trained = [r for r in first if r["kind"] == "trained"]
    assert {r["method"]: len(r["commands"]) for r in trained} == {"supervised": 1, "active": 3}
    assert all(0.0 < r["top1"] < 1.0 for r in trained)  # accuracies depend on the machine
    # Another folder continues from the records: no second calibration, equally many steps, the next seed.
    seeds = ("--seeds", "0", "1")
    shown = compare(tmp_path / "second", little_pack.path, *options, *seeds, *kept, "supervised")
    both = list(read_lines(records))
    added = [r for r in both if r not in first]
    assert len(both) == len(first) + 1
    assert [(r["method"], r["seed"]) for r in added] == [("supervised", 1)]
    assert added[0]["steps"] == next(r["steps"] for r in trained if r["method"] == "supervised")
    assert "(1 of 2)" in next(line for line in shown.splitlines() if line.startswith("| Active labels"))
    assert records.with_suffix(".md").read_text().strip() in shown


def test_a_pack_with_too_few_labels_is_refused_before_any_work(little_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^labels per class: expected at most "):
        run_here(tmp_path, little_pack.path, "--family", "semisup", "--labels-per-class", "4", "100000")
    assert not (tmp_path / "logs").exists()


def test_half_of_one_label_cannot_be_bought(
    little_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_methods, "measure", lambda *given: pytest.fail("it was measured"))
    options = ("--family", "semisup", "--labels-per-class", "4", "1", "--methods", "supervised", "active")
    with pytest.raises(UserError, match=r"^labels per class: expected 2 or more for active, .* found 1; "):
        run_here(tmp_path, little_pack.path, *options)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_method_is_calibrated_with_many_classes(name: str) -> None:
    made: list[Any] = []
    bench = SimpleNamespace(
        common=("--pack", Path("packs/x"), "--num-threads", 1),
        num_classes=100,
        num_train=1000,
        run=lambda one, log: made.append(parsed(one)) or 1.0,
        cost=lambda name, run, steps_per_epoch: run(Path("runs/x"), 8),
    )
    assert semisup.cost_of(bench, name) == len(made)  # type: ignore[arg-type]
    assert all(config.labels_per_class for config in made)


class Told(SimpleNamespace):
    """A comparison that keeps its results in memory."""

    def once(self, identity: Record, work: Callable[[], Record]) -> Record:
        if (stage := stage_of(identity)) not in self.kept:
            self.kept[stage] = work()
        return self.kept[stage]


def test_the_first_method_that_succeeds_brings_the_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[tuple[str, int]] = []

    def pretrain(bench: object, name: str, seed: int) -> Record:
        if (name, seed) == ("a", 0):
            raise CommandFailed("it broke")
        return {"cpu_s": 1.0, "steps": 1, "metric_name": "loss", "metric": 1.0}

    def measure(bench: object, name: str, seed: int, labels: object, beside: bool) -> None:
        brought.extend([(name, seed)] * beside)

    monkeypatch.setattr(selfsup, "pretrain", pretrain)
    monkeypatch.setattr(selfsup, "frozen", measure)
    monkeypatch.setattr(selfsup, "fine_tuned", measure)
    bench = Told(kept={}, say=lambda line: None)
    failures = Failures(Console(file=io.StringIO()))
    selfsup.measure_all(bench, ("a", "b", "c"), (4,), (0, 1), 4, failures)  # type: ignore[arg-type]
    assert brought == [("b", 0), ("b", 0), ("a", 1), ("a", 1)]
    assert failures.count == 1


def test_training_from_scratch_is_made_up_for(tmp_path: Path) -> None:
    """A method was measured without baselines, which another method should have measured but failed."""
    alone, both = (FewLabelResult(init, 4, 0, 0.5, 10, 3) for init in ("runs/b", SCRATCH))
    out = tmp_path / "b-seed-0-transfer"
    write_results(out, [alone], {})
    told = Told(
        kept={"fine_tuned-b-4-labels-seed-0": {"results": []}},
        out=tmp_path, pack=Path("packs/x"), num_threads=1,
        run=lambda made, log: write_results(out, [alone, both], {}),
    )  # fmt: skip
    selfsup.fine_tuned(told, "b", 0, (4,), scratch=True)  # type: ignore[arg-type]
    (kept,) = (record for stage, record in told.kept.items() if SCRATCH in stage)
    assert [result["top1"] for result in kept["results"]] == [0.5]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("budget_s", ("--budget-s", "3")),
        ("probe_labels_per_class", ("--probe-labels-per-class", "9")),
        ("calibration_steps", ("--calibration-steps", "1", "4")),
        ("family", ("--family", "semisup")),
    ],
)
def test_another_question_wants_another_folder(
    name: str, change: tuple[str, ...], little_pack: Pack, tmp_path: Path
) -> None:
    options = ("--family", "selfsup", *NOTHING)
    run_here(tmp_path, little_pack.path, *options)
    written = (tmp_path / "comparison.json").read_bytes()
    run_here(tmp_path, little_pack.path, *options)
    with pytest.raises(UserError, match=rf"^{name}: expected .*, with which .*, found .*; give another"):
        run_here(tmp_path, little_pack.path, *options, *change)
    assert (tmp_path / "comparison.json").read_bytes() == written


def test_a_second_command_is_told_at_once_and_may_make_the_table(little_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "selfsup", "--calibrate-only")
    with alone_in(tmp_path):
        with pytest.raises(
            UserError, match=r"^out: expected no other command in .*, found one running; wait"
        ):
            run_here(tmp_path, little_pack.path, *options)
        run_here(tmp_path, little_pack.path, *options, "--table-only")


def test_another_pack_wants_another_folder(little_pack: Pack, digits_pack: Pack, tmp_path: Path) -> None:
    options = ("--family", "selfsup", *NOTHING)
    run_here(tmp_path, little_pack.path, *options)
    with pytest.raises(UserError, match=r"^pack: expected 'of .*, with which .*, found .*; give another"):
        run_here(tmp_path, digits_pack.path, *options)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected names among supervised, .*, found barlow"):
        Config(family="semisup", pack=tmp_path, out=tmp_path, budget_s=1.0, methods=("barlow",))
    with pytest.raises(UserError, match="calibration_steps: expected two increasing numbers"):
        Config(family="selfsup", pack=tmp_path, out=tmp_path, budget_s=1.0, calibration_steps=(5, 5))
