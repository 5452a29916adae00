"""Curves of any number of runs: the runs that share a line, the values of the line, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loaders.common.errors import UserError
from tools import plot_runs


def run_of(out: Path, values: dict[int, float], **options: Any) -> Path:
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps({"recipe": "fixmatch", "config": options}))
    lines = [{"step": step, "validation_top1": value} for step, value in values.items()]
    lines.insert(1, {"step": 15, "loss": 1.0})
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, ...]:
    return (
        run_of(tmp_path / "a", {10: 0.2, 20: 0.4}, threshold=0.9, seed=0),
        run_of(tmp_path / "b", {10: 0.4, 20: 0.8, 30: 0.9}, threshold=0.9, seed=1),
        run_of(tmp_path / "c", {10: 0.1, 20: 0.3}, threshold=0.95, seed=0),
    )


def config_of(runs: tuple[Path, ...], **changes: Any) -> plot_runs.Config:
    return plot_runs.Config(runs=runs, out=runs[0].parent / "curves.png", **changes)


def test_runs_that_agree_share_a_line(runs: tuple[Path, ...]) -> None:
    both, other = plot_runs.lines_of(config_of(runs, by=("threshold",)))
    assert (both.name, other.name) == ("threshold 0.9 (2 runs)", "threshold 0.95")
    assert list(both.places) == [10, 20]
    assert both.mean == pytest.approx([0.3, 0.6])
    assert both.spread == pytest.approx([0.1414, 0.2828], abs=1e-4)
    assert list(other.spread) == [0.0, 0.0]
    assert [line.name for line in plot_runs.lines_of(config_of(runs))] == ["a", "b", "c"]
    by = ("recipe", "threshold", "seed")
    assert plot_runs.lines_of(config_of(runs, by=by))[1].name == "recipe fixmatch, threshold 0.9, seed 1"


def test_the_command_draws_for_light_and_dark_pages(
    runs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs[0].parent / "figures" / "curves.png"
    words = ["--runs", *map(str, runs), "--by", "threshold", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["plot_runs", *words])
    plot_runs.main()
    assert out.read_bytes()[:4] == out.with_stem("curves-dark").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "threshold 0.9 (2 runs): validation_top1 0.6 at step 20" in said
    assert f"plot_runs: 3 runs in 2 lines -> {out}" in said


def test_runs_of_one_name_have_a_line_each(tmp_path: Path) -> None:
    runs = tuple(run_of(tmp_path / place / "fine-tune", {10: 0.5}) for place in ("a", "b"))
    lines = plot_runs.lines_of(config_of(runs))
    assert [line.name for line in lines] == [str(run) for run in runs]


def test_a_text_is_no_quantity(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {10: 0.5})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "phase": "rounds"}) + "\n")
    with pytest.raises(UserError, match=r"metric: expected 'phase' in .*found loss, validation_top1$"):
        plot_runs.lines_of(config_of((run,), metric="phase"))


def test_what_cannot_be_drawn_is_refused(runs: tuple[Path, ...], tmp_path: Path) -> None:
    for changes, expected in (
        ({"by": ("width",)}, "by: expected options of .*found 'width'; it has recipe, seed, threshold"),
        ({"metric": "mask_rate"}, "metric: expected 'mask_rate' in .*found loss, validation_top1"),
    ):
        with pytest.raises(UserError, match=expected):
            plot_runs.lines_of(config_of(runs, **changes))
    apart = run_of(tmp_path / "d", {7: 0.5}, threshold=0.9, seed=2)
    with pytest.raises(UserError, match="measured at the same steps, found none in common"):
        plot_runs.lines_of(config_of((*runs, apart), by=("threshold",)))
    with pytest.raises(UserError, match="expected a run at"):
        plot_runs.lines_of(config_of((tmp_path / "nowhere",)))
    with pytest.raises(UserError, match=r"ends with \.png"):
        plot_runs.Config(runs=runs, out=tmp_path / "curves.pdf")
    with pytest.raises(UserError, match="expected one run folder or more"):
        plot_runs.Config(runs=(), out=tmp_path / "curves.png")
