"""Recipes have identical losses on every backend that renders the cpu backend's views."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.stores.store import StoreOptions
from recipes import barlow, fixmatch
from tests.forked import run_forked

SMALL = {
    "backbone": "test_resnet",
    "resolution": 16,
    "flip_p": 0.0,
    "loader": LoaderOptions(num_threads=1),
    "log_every": 1,
    "trackers": (),
    "progress": False,
    "max_steps": 3,
}
RUNS = {
    "barlow": (barlow, {"split": "train", "batch_size": 16, "projector": (32, 32), "precision": "no"}),
    "fixmatch": (fixmatch, {"batch_size": 4, "mu": 2, "labels_per_class": 4, "precision": "no"}),
}


def losses(name: str, pack: Pack, out: Path, backend: str = "cpu", **changes: object) -> list[float]:
    """Run a recipe for three steps and return its losses."""
    recipe, settings = RUNS[name]
    config = recipe.Config(pack=pack.path, out=out, **(SMALL | settings | changes))
    recipe.run(replace(config, loader=replace(config.loader, backend=backend)))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_cpu_backends(name: str, digits_pack: Pack, tmp_path: Path) -> None:
    expected = losses(name, digits_pack, tmp_path / "cpu", device="cpu")
    assert len(expected) == 3
    assert losses(name, digits_pack, tmp_path / "resident", "resident", device="cpu") == expected
    if importlib.util.find_spec("nvidia.dali"):
        assert losses(name, digits_pack, tmp_path / "dali", "dali", device="cpu") == expected


def test_a_run_goes_on_on_another_device(digits_pack: Pack, tmp_path: Path) -> None:
    """On a machine without a GPU, `auto` is the only other choice."""
    losses("barlow", digits_pack, tmp_path, device="cpu", max_steps=1)
    assert len(losses("barlow", digits_pack, tmp_path, device="auto", resume=True)) == 3
    assert json.loads((tmp_path / "config.json").read_text())["config"]["device"] == "cpu"


def test_a_resume_keeps_the_backend_that_auto_took(digits_pack: Pack, tmp_path: Path) -> None:
    """The run began with a pack in a store that is local now; an explicit --backend takes precedence."""
    there: Any = SimpleNamespace(path=Path(f"file://{digits_pack.path}"))
    cached = LoaderOptions(num_threads=1, store=StoreOptions(cache_dir=tmp_path / "cache"))
    out, file = tmp_path / "run", tmp_path / "run" / "config.json"
    losses("barlow", there, out, "auto", loader=cached, max_steps=1)
    content = json.loads(file.read_text())
    assert content["config"]["taken_backend"] == "stream"
    with pytest.raises(UserError, match="expected order windows of 16 shards, found full shuffle"):
        losses("barlow", digits_pack, out, "cpu", resume=True)
    expected = losses("barlow", digits_pack, tmp_path / "whole", "stream")
    assert losses("barlow", digits_pack, out, "auto", resume=True, max_steps=2) == expected[:2]
    del content["config"]["taken_backend"]  # like an older run
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected order windows of 16 shards, found full shuffle"):
        losses("barlow", digits_pack, out, "auto", resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")
@pytest.mark.parametrize("name", ["fixmatch", pytest.param("barlow", marks=pytest.mark.slow)])
def test_bfloat16_is_taken_said_kept_and_resumed(name: str, digits_pack: Pack, tmp_path: Path) -> None:
    """A simulated processor, in a separate process, since accelerate keeps one precision per process.

    The losses, whose sums are float32, stay near those of float32. The loader rounds views to bfloat16 for a
    GPU exactly as autocast would: every loss is the same, also after a resume.
    """
    done = run_forked("-m", "tests.recipes.bfloat16_runs", name, digits_pack.path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("precision: bfloat16 autocast") == 4  # two runs, two resumes
    found: list[float] = []
    for folder, views in ((name, "float32"), (f"{name}-views", "bfloat16")):
        config = json.loads((tmp_path / folder / "config.json").read_text())["config"]
        assert (config["autocast"], config["precision"], config["views"]) == ("bf16", "auto", views)
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        same, found = found, [json.loads(line)["loss"] for line in lines]
        assert len(found) == 2
        assert same in ([], found)
    expected = losses(name, digits_pack, tmp_path / "float32", max_steps=1, resolution=32)
    assert found[:1] != expected
    assert found[:1] == pytest.approx(expected, rel=0.05)
