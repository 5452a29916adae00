"""The benchmark of training: its commands are ones the recipes take, and its table."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import tyro
from rich.console import Console

from engine.measured import Measure
from loaders.errors import UserError
from loaders.packs import Pack
from tools.bench_training import PAIRED, Config, RecipeName, command_of, render, run


@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_every_command_is_one_that_its_recipe_takes(recipe: str) -> None:
    _, script, *arguments = command_of(Config(pack=Path("p")), recipe, "model", Path("o"))
    module = import_module(f"recipes.{Path(script).stem}")
    config = tyro.cli(module.Config, args=arguments)
    assert (config.measure, config.resolution, config.max_steps) == ("model", 32, 40)
    assert config.batch_size * (1 + config.mu if recipe in PAIRED else 1) == 128


def test_every_recipe_with_a_training_step_is_measured() -> None:
    several = {"self_training", "active", "evaluate", "pipeline", "transfer"}  # made of other trainings
    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py")}
    assert set(get_args(RecipeName)) == recipes - several


def test_shares_of_the_smaller_and_of_what_sharing_leaves() -> None:
    speed = {"model": 100.0, "loader": 300.0, "training": 75.0}
    records = [
        {"recipe": "barlow", "kind": kind, "img_per_s": value, "wait_share": 0.25}
        for kind, value in speed.items()
    ]
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(records))
    assert "75.0%" in shown.getvalue()
    assert "100.0%" in shown.getvalue()
    assert "25.0%" in shown.getvalue()


def test_too_short_a_run_and_a_failing_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(file=io.StringIO())
    with pytest.raises(UserError, match="steps: expected at least 8"):
        run(Config(pack=tmp_path, steps=4), quiet)
    monkeypatch.setattr("tools.bench_training.sys.executable", "false")
    with pytest.raises(UserError, match=r"bench: rotnet \(training\) ended with 1: no message"):
        run(Config(pack=tmp_path, recipes=("rotnet",), runs=1), quiet)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_a_recipe_is_measured_in_all_kinds(recipe: RecipeName, digits_pack: Pack) -> None:
    config = Config(pack=digits_pack.path, recipes=(recipe,), resolution=16, batch_size=32, steps=8, runs=1)
    records = run(config, Console(file=io.StringIO()))
    assert [record["kind"] for record in records] == list(get_args(Measure))
    assert all(record["img_per_s"] > 0 for record in records)
