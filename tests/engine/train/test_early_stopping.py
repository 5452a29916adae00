"""Early stopping: when it stops, which weights it keeps, and that an interruption changes nothing."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import engine.train.early_stopping as early_stopping
from engine.evaluate.predict import Accuracy
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.early_stopping import Best, Stopping, train_until_worse
from engine.train.loop import LoopConfig
from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from tests.engine.synthetic import SmallRecipe, SyntheticLoader

STOPPING = Stopping(every_steps=2, patience=2)


def stop_training(
    out: Path, accuracies: list[float], fail_at: int | None = None
) -> tuple[Best, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Train 12 steps at most; the validation accuracies are given, one per measurement in the run's life."""
    measured: list[dict[str, Tensor]] = []
    done = len(read_metrics(out / "validation.jsonl"))

    def measure(recipe, loader, device, out) -> Accuracy:
        if done + len(measured) == fail_at:
            raise KeyboardInterrupt
        measured.append({name: t.clone() for name, t in recipe.state_dict().items()})
        return Accuracy(accuracies[done + len(measured) - 1], 10)

    seed_everything(0)
    recipe, loader = SmallRecipe(), SyntheticLoader()
    config = LoopConfig(out=out, epochs=4, log_every=1, progress=False, config={"width": 1})
    with mock.patch.object(early_stopping, "measure_accuracy", measure):
        best = train_until_worse(recipe, loader, loader, make_accelerator("no"), config, STOPPING)
    return best, recipe.state_dict(), measured


def test_stops_when_it_no_longer_rises_and_keeps_the_best(tmp_path: Path) -> None:
    best, weights, measured = stop_training(tmp_path / "run", [0.2, 0.5, 0.5, 0.4, 0.9, 0.9])
    assert best == Best(step=4, top1=0.5, last_step=8)
    assert all(torch.equal(weights[name], measured[1][name]) for name in weights)
    assert not all(torch.equal(weights[name], measured[3][name]) for name in weights)


def test_goes_to_the_end_while_it_rises(tmp_path: Path) -> None:
    best, weights, measured = stop_training(tmp_path / "run", [0.1, 0.2, 0.15, 0.3, 0.25, 0.4])
    assert best == Best(12, 0.4, 12)
    assert all(torch.equal(weights[name], measured[-1][name]) for name in weights)


@pytest.mark.parametrize("fail_at", [0, 2])
def test_an_interrupted_run_ends_like_a_whole_one(tmp_path: Path, fail_at: int) -> None:
    accuracies = [0.2, 0.5, 0.5, 0.4, 0.9, 0.9]
    whole = stop_training(tmp_path / "whole", accuracies)
    with pytest.raises(KeyboardInterrupt):
        stop_training(tmp_path / "parts", accuracies, fail_at)
    parts = stop_training(tmp_path / "parts", accuracies)
    again = stop_training(tmp_path / "parts", accuracies)
    assert parts[0] == whole[0] == again[0]
    assert not again[2], "a finished run measures nothing"
    for name, expected in whole[1].items():
        assert torch.equal(parts[1][name], expected)
        assert torch.equal(again[1][name], expected)
    steps = [[r["step"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "parts")]
    assert steps[0] == steps[1]


def test_a_measurement_that_a_crash_damaged_is_taken_again_or_refused(tmp_path: Path) -> None:
    accuracies = [0.2, 0.5, 0.5, 0.4, 0.9, 0.9]
    whole = stop_training(tmp_path / "run", accuracies)
    path = tmp_path / "run" / "validation.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20] + b"\0" * 19 + b"\n")  # the last line
    assert stop_training(tmp_path / "run", accuracies)[0] == whole[0]
    assert path.read_bytes() == content
    path.write_bytes(b"\0" + content)  # the first
    with pytest.raises(
        UserError, match=r"validation.jsonl: expected measurements at steps \[2, 4, 6\], found"
    ):
        stop_training(tmp_path / "run", accuracies)
