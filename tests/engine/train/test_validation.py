"""Validation during training: when it measures, the weights it keeps, when it stops, and exact resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import engine.train.validation as validation_module
from engine.choices import Keep
from engine.evaluate.predict import Accuracy
from engine.train.checkpoint import list_checkpoints
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.loop import TrainSummary, train
from engine.train.loop_config import LoopConfig
from engine.train.metrics import read_metrics
from engine.train.validation import Validation, ValidationState, Validator
from loaders.common.errors import UserError
from tests.engine.synthetic import SmallRecipe, SyntheticLoader

VALIDATION = Validation(SyntheticLoader(), every_steps=2, keep="best", patience=2)  # type: ignore[arg-type]
RISES_ONCE = [0.2, 0.5, 0.5, 0.4, 0.9, 0.9]
Weights = dict[str, Tensor]


class Leaving(SmallRecipe):
    """A recipe that records its weights when the loop calls `leave_last`."""

    left: Weights | None = None

    def leave_last(self, out: Path) -> None:
        self.left = {name: t.clone() for name, t in self.state_dict().items()}


def train_measured(
    out: Path,
    accuracies: Sequence[float],
    validation: Validation = VALIDATION,
    fail_at: int | None = None,
    **changes: Any,
) -> tuple[TrainSummary, Leaving, list[Weights]]:
    """Train at most 12 steps; the n-th measurement of the validation images returns the n-th accuracy."""
    measured: list[Weights] = []
    seed_everything(0)
    recipe, loader = Leaving(), SyntheticLoader()
    every, position = validation.every_steps or 1, {"step": 0}

    def count(step: int) -> None:
        position["step"] = step + 1

    def measure(network: nn.Module, *args: Any) -> Accuracy:
        number = -(-position["step"] // every) - 1
        if number == fail_at:
            raise KeyboardInterrupt
        measured.append({name: t.clone() for name, t in network.state_dict().items()})
        return Accuracy(accuracies[number], 10, loss=1.0 - accuracies[number])

    config = LoopConfig(out=out, epochs=4, log_every=1, progress=False, resume=True, config={"width": 1})
    with (
        mock.patch.object(validation_module, "measure_accuracy", measure),
        mock.patch.object(recipe, "after_step", count),
    ):
        summary = train(
            recipe, loader, make_accelerator("no"), replace(config, **changes), validation=validation
        )
    return summary, recipe, measured


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def validations(out: Path) -> list[tuple[int, float]]:
    records = read_metrics(out / "metrics.jsonl")
    return [(r["step"], r["validation_top1"]) for r in records if "validation_top1" in r]


def test_training_stops_when_it_no_longer_rises_and_keeps_the_best(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary, recipe, measured = train_measured(out, RISES_ONCE)
    assert summary.step == 8
    assert summary.validation == ValidationState(best_step=4, best_top1=0.5, num_worse=2)
    assert_same(recipe.state_dict(), measured[1])
    assert recipe.left is not None
    assert_same(recipe.left, measured[3])
    backbone = safetensors.torch.load_file(out / "backbone.safetensors")
    assert_same(backbone, {k: v.contiguous() for k, v in recipe.backbone.state_dict().items()})
    assert validations(out) == [(2, 0.2), (4, 0.5), (6, 0.5), (8, 0.4)]
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step-00000008"]


def test_the_last_weights_stay_unless_the_best_are_asked_for(tmp_path: Path) -> None:
    plan = replace(VALIDATION, keep="last", patience=0)
    summary, recipe, measured = train_measured(tmp_path / "run", RISES_ONCE, plan)
    assert summary.step == 12
    assert_same(recipe.state_dict(), measured[-1])
    assert recipe.left is None
    assert not list(tmp_path.rglob("best.safetensors")), "what nobody uses takes no room"
    plain = train_measured(tmp_path / "plain", RISES_ONCE, replace(plan, every_steps=12))[1]
    assert_same(recipe.state_dict(), plain.state_dict())  # measuring changes nothing


def test_a_short_run_is_measured_every_ten_steps_by_default(tmp_path: Path) -> None:
    plan = replace(VALIDATION, every_steps=None, patience=0)
    train_measured(tmp_path / "run", [k / 100 for k in range(12)], plan, steps=12)
    assert [step for step, _ in validations(tmp_path / "run")] == [10, 12]


@pytest.mark.parametrize(("total", "every"), [(1, 10), (39, 10), (219, 10), (1000, 50)])
def test_by_default_a_run_is_measured_about_twenty_times_at_most(
    total: int, every: int, tmp_path: Path
) -> None:
    rules = Validator(replace(VALIDATION, every_steps=None), tmp_path, total).rules
    assert rules["validation"].startswith(f"every {every} steps,")


def test_the_end_is_measured_too(tmp_path: Path) -> None:
    plan = replace(VALIDATION, every_steps=5, patience=0)
    train_measured(tmp_path / "run", [0.1, 0.3, 0.2], plan)
    assert [step for step, _ in validations(tmp_path / "run")] == [5, 10, 12]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_end_before_its_time_is_measured_and_disturbs_no_resume(tmp_path: Path, keep: Keep) -> None:
    plan, rises = replace(VALIDATION, keep=keep, patience=0), [0.2, 0.5, 0.7, 0.4, 0.6, 0.1]
    whole = train_measured(tmp_path / "whole", rises, plan)
    first, recipe, measured = train_measured(tmp_path / "parts", rises, plan, max_steps=1)
    assert first.validation == ValidationState(best_step=1, best_top1=0.2), "the only weights that there are"
    assert_same(recipe.state_dict(), measured[-1])
    short, recipe, measured = train_measured(tmp_path / "parts", rises, plan, max_steps=5)
    assert short.validation == ValidationState(best_step=5, best_top1=0.7)
    assert_same(recipe.state_dict(), measured[-1])
    assert validations(tmp_path / "parts") == [(2, 0.2), (4, 0.5)]
    parts = train_measured(tmp_path / "parts", rises, plan)
    assert parts[0].validation == whole[0].validation
    assert_same(parts[1].state_dict(), whole[1].state_dict())
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")


@pytest.mark.parametrize(
    ("every", "fail_at"),
    [
        *((1, 2), (3, 3), (500, 0)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, 0), (1, 3), (3, 0), (3, 2), (500, 2), (500, 3))
        ),
    ],
)
def test_an_interrupted_run_ends_like_a_whole_one(tmp_path: Path, fail_at: int, every: int) -> None:
    whole = train_measured(tmp_path / "whole", RISES_ONCE, checkpoint_every_steps=every)
    with pytest.raises(KeyboardInterrupt):
        train_measured(tmp_path / "parts", RISES_ONCE, fail_at=fail_at, checkpoint_every_steps=every)
    parts = train_measured(tmp_path / "parts", RISES_ONCE, checkpoint_every_steps=every)
    again = train_measured(tmp_path / "parts", RISES_ONCE, checkpoint_every_steps=every)
    assert not again[2], "a finished run measures nothing"
    for summary, recipe, _ in (parts, again):
        assert (summary.step, summary.validation) == (whole[0].step, whole[0].validation)
        assert_same(recipe.state_dict(), whole[1].state_dict())
        assert recipe.left is not None
        assert whole[1].left is not None
        assert_same(recipe.left, whole[1].left)
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")


def test_the_best_state_outlives_a_damaged_checkpoint(tmp_path: Path) -> None:
    out, options = tmp_path / "run", {"checkpoint_every_steps": 3}
    whole = train_measured(tmp_path / "whole", RISES_ONCE, **options)
    train_measured(out, RISES_ONCE, **options)
    newest = list_checkpoints(out / "checkpoints")[-1] / "best.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\1")
    parts = train_measured(out, RISES_ONCE, **options)
    assert_same(parts[1].state_dict(), whole[1].state_dict())


def test_a_checkpoint_under_another_rule_or_from_before_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_measured(out, RISES_ONCE, max_steps=2)
    with pytest.raises(UserError, match=r"expected the rule 'every 3 steps.*found 'every 2 steps"):
        train_measured(out, RISES_ONCE, replace(VALIDATION, every_steps=3))
    seed_everything(0)
    config = LoopConfig(out=tmp_path / "before", epochs=4, progress=False, max_steps=2)
    train(SmallRecipe(), SyntheticLoader(), make_accelerator("no"), config)
    with pytest.raises(UserError, match="found 'that of an earlier version'"):
        train_measured(tmp_path / "before", RISES_ONCE, config={})
    with pytest.raises(UserError, match="of a version without keep; finish it with that version"):
        train_measured(tmp_path / "before", RISES_ONCE, config={"keep": "last"})


@pytest.mark.parametrize(("accuracies", "best_step"), [([0.5, 0.4, 0.5], 0), ([0.5, 0.4, 0.6], 4)])
def test_the_start_is_among_what_may_be_best(tmp_path: Path, accuracies: list[float], best_step: int) -> None:
    measured: list[Weights] = []

    def measure(network: nn.Module, *args: Any) -> Accuracy:
        measured.append({name: t.clone() for name, t in network.state_dict().items()})
        return Accuracy(accuracies[len(measured) - 1], 10, loss=1.0)

    seed_everything(0)
    recipe = SmallRecipe()
    begun = {name: t.clone() for name, t in recipe.state_dict().items()}
    watched = replace(VALIDATION, patience=0, from_start=True)
    config = LoopConfig(out=tmp_path / "run", epochs=1, steps=4, log_every=1, progress=False)
    with mock.patch.object(validation_module, "measure_accuracy", measure):
        summary = train(recipe, SyntheticLoader(), make_accelerator("no"), config, validation=watched)
    state = summary.validation
    assert state is not None
    assert (state.best_step, state.start_top1) == (best_step, 0.5)
    assert_same(measured[0], begun)
    assert_same(recipe.state_dict(), measured[best_step // 2])
    assert [step for step, _ in validations(tmp_path / "run")] == [0, 2, 4]


def test_no_steps_leave_the_weights_as_the_run_begins(tmp_path: Path) -> None:
    seed_everything(0)
    recipe = SmallRecipe()
    begun = {name: t.clone() for name, t in recipe.state_dict().items()}
    config = LoopConfig(out=tmp_path / "run", epochs=1, max_steps=0, progress=False)
    summary = train(recipe, SyntheticLoader(), make_accelerator("no"), config)
    assert summary.step == 0
    assert_same(recipe.state_dict(), begun)
    assert summary.backbone.is_file()
