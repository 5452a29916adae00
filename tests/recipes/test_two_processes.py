"""For every recipe with labels, two processes compute the same results as one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from engine.evaluate.few_labels import read_results
from engine.train.classifier_recipe import read_accuracy
from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes import pseudo_label
from tests.recipes.short_runs import SMALL
from tests.recipes.two_processes import small_runs

NAMES = sorted(small_runs(Path(), Path()))
NEAR = 0.021  # four of the 200 test images
ALONE = ("active", "evaluate", "pipeline")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name: str, labelled_by_two: Path, little_pack: Pack, tmp_path: Path) -> None:
    small_runs(little_pack.path, tmp_path)[name]()
    logs = sorted(path.relative_to(tmp_path) for path in (tmp_path / name).rglob("metrics.jsonl"))
    assert logs
    for log in logs:
        expected, found = read_metrics(tmp_path / log), read_metrics(labelled_by_two / log)
        assert len(found) == len(expected) > 0
        for record, reference in zip(found[:5], expected[:5], strict=True):  # later, rounding errors grow
            for key in reference.keys() - {"img_per_s", "wait_share"}:
                assert record[key] == pytest.approx(reference[key], rel=5e-3, abs=1e-3), (log, key)
        one, two = (read_accuracy((folder / log).parent) for folder in (tmp_path, labelled_by_two))
        for weights, accuracy in one.items():
            assert two[weights].num_images == accuracy.num_images
            assert two[weights].top1 == pytest.approx(accuracy.top1, abs=NEAR)
    for file in (tmp_path / name).rglob("few_labels.json"):
        (one_result,), (two_result,) = (
            read_results((folder / file.relative_to(tmp_path)).parent)[0]
            for folder in (tmp_path, labelled_by_two)
        )
        assert (two_result.num_test, two_result.steps) == (one_result.num_test, one_result.steps)
        assert two_result.top1 == pytest.approx(one_result.top1, abs=NEAR)
        assert two_result.top5 == pytest.approx(one_result.top5, abs=NEAR)


def test_every_recipe_runs_on_two_processes_or_refuses_them() -> None:
    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("[a-z]*.py")}
    launched = {name for name in recipes if any(run.startswith(name) for run in NAMES)}
    assert launched | set(SMALL) | {"barlow"} == recipes - set(ALONE)  # `test_barlow` compares Barlow Twins
    modes = get_args(get_type_hints(pseudo_label.Config)["mode"])
    assert {f"pseudo_label_{mode}" for mode in modes} <= set(NAMES)


@pytest.mark.parametrize("name", ALONE)
def test_a_command_of_one_process_refuses_a_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = import_module(f"recipes.{name}")
    function = recipe.evaluate if name == "evaluate" else recipe.run
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=f"{name}: expected one process, found 2"):
        function(None)
