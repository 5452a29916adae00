"""Recipes over every backend that draws the cpu backend's views: the losses are the same numbers."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.train import autocast
from loaders import LoaderOptions
from loaders.packs import Pack
from recipes import barlow, fixmatch

SMALL = {
    "backbone": "tiny_resnet",
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
    expected = losses(name, digits_pack, tmp_path / "cpu")
    assert len(expected) == 3
    assert losses(name, digits_pack, tmp_path / "resident", "resident") == expected
    if importlib.util.find_spec("nvidia.dali"):
        assert losses(name, digits_pack, tmp_path / "dali", "dali") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")
@pytest.mark.parametrize("name", RUNS)
def test_bfloat16_is_taken_said_kept_and_resumed(
    name: str,
    digits_pack: Pack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A stand-in for the processor; the losses, whose sums are float32, stay near those of float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    changes = {"precision": "auto", "progress": True}
    half = losses(name, digits_pack, tmp_path / "run", **changes)
    assert "precision: bfloat16 autocast" in capsys.readouterr().err.splitlines()[0]
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config[autocast.KEY] == "bf16"
    assert config["precision"] == "auto"
    assert half == pytest.approx(losses(name, digits_pack, tmp_path / "float32"), rel=0.05)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # another processor goes on with it
    losses(name, digits_pack, tmp_path / "run", **changes, resume=True, max_steps=4)
    assert "precision: bfloat16 autocast" in capsys.readouterr().err
