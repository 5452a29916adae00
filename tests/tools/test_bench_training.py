"""The benchmark of training: recipes accept its commands; its table."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import tyro
from rich.console import Console

from engine.choices import Precision
from loaders.common.errors import UserError
from loaders.packs import Pack
from tools.bench_training import PAIRED, Config, RecipeName, command_of, render, run


@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_every_command_is_one_that_its_recipe_takes(recipe: str) -> None:
    _, script, *arguments = command_of(Config(pack=Path("p")), recipe, "bf16", "turns", Path("o"))
    module = import_module(f"recipes.{Path(script).stem}")
    config = tyro.cli(module.Config, args=arguments)
    assert (config.measure, config.resolution, config.max_steps) == ("turns", 32, 350)
    assert config.precision == "bf16"
    assert config.batch_size * (1 + config.mu if recipe in PAIRED else 1) == 128


def test_every_recipe_with_a_training_step_is_measured() -> None:
    several = {"self_training", "active", "evaluate", "pipeline", "transfer"}  # consist of other trainings
    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("[a-z]*.py")}
    assert set(get_args(RecipeName)) == recipes - several


def test_shares_of_the_smaller_and_of_what_sharing_leaves() -> None:
    turns = {"model_img_per_s": [100.0, 200.0, 50.0], "img_per_s": [75.0, 150.0, 50.0], "wait_share": 0.25}
    records = [
        {"recipe": "barlow", "precision": "no", "kind": "turns", **turns},
        {"recipe": "barlow", "precision": "no", "kind": "loader", "img_per_s": 300.0},
        {"recipe": "barlow", "precision": "bf16", "kind": "turns", **turns, "img_per_s": [60.0, 120.0, 30.0]},
        {"recipe": "barlow", "precision": "bf16", "kind": "loader", "img_per_s": 300.0},
    ]
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(records))
    assert "75.0% ± 10.4%" in shown.getvalue()  # 1.25 * std(3/4, 3/4, 1) / sqrt(3)
    assert "100.0%" in shown.getvalue()
    assert "25.0%" in shown.getvalue()
    assert "60.0%" in shown.getvalue()  # a separate row for each precision


def test_one_pair_has_no_error() -> None:
    turns = {"model_img_per_s": [100.0], "img_per_s": [75.0], "wait_share": 0.25}
    own = {"recipe": "barlow", "precision": "no"}
    shown = io.StringIO()
    table = render([{**own, "kind": "turns", **turns}, {**own, "kind": "loader", "img_per_s": 300.0}])
    Console(file=shown, width=120).print(table)
    assert "75.0%" in shown.getvalue()
    assert "±" not in shown.getvalue()


def test_too_short_a_run_and_a_failing_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(file=io.StringIO())
    with pytest.raises(UserError, match="window: expected"):
        run(Config(pack=tmp_path, window=0), quiet)
    monkeypatch.setattr("tools.bench_training.sys.executable", "false")
    with pytest.raises(UserError, match=r"bench: rotnet \(turns, auto\) exited with 1: no message"):
        run(Config(pack=tmp_path, recipes=("rotnet",)), quiet)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_a_recipe_is_measured_in_all_kinds(recipe: RecipeName, digits_pack: Pack) -> None:
    config = Config(pack=digits_pack.path, recipes=(recipe,), resolution=16, batch_size=32, window=2, pairs=2)
    turns, loader = run(config, Console(file=io.StringIO()))
    assert loader["img_per_s"] > 0
    assert [len(turns[name]) for name in ("model_img_per_s", "img_per_s")] == [2, 2]


def test_each_precision_is_measured_in_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str, str]] = []

    def stand_in(config: Config, recipe: str, precision: str, kind: str) -> dict[str, object]:
        taken.append((recipe, precision, kind))
        return {"recipe": recipe, "precision": precision, "kind": kind, "wall_s": 1.0}

    monkeypatch.setattr("tools.bench_training.measure", stand_in)
    precisions: tuple[Precision, ...] = ("no", "bf16")
    config = Config(pack=tmp_path, recipes=("rotnet",), precisions=precisions, runs=2)
    records = run(config, Console(file=io.StringIO()))
    once = [("rotnet", precision, kind) for precision in precisions for kind in ("turns", "loader")]
    assert taken == 2 * once
    assert [record["run"] for record in records] == [0] * 4 + [1] * 4
