"""SimCLR: constants and what a short run learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.metrics import read_metrics
from loaders.packs import Pack
from recipes.simclr import Config, SimClr
from tests.recipes.frozen import knn_top1_of_run
from tests.recipes.short_runs import run_short


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.projector, config.temperature, config.batch_size) == ((2048, 128), 0.1, 4096)
    assert (config.lr, config.weight_decay, config.warmup_epochs) == (0.3, 1e-6, 10.0)
    small = Config(pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=16, batch_size=512)
    weights, vectors = SimClr(small).make_optimizer().param_groups
    assert (weights["lr"], weights["adapt"], weights["weight_decay"]) == (pytest.approx(0.6), True, 1e-6)
    assert (vectors["lr"], vectors["adapt"], vectors["weight_decay"]) == (pytest.approx(0.6), False, 0.0)


def test_learns_to_tell_digits_apart(digits_pack: Pack, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"projector": (64, 32), "min_crop": 0.5, "warmup_epochs": 0.3, "lr": 4.0, "color_strength": 0.3}
    run_short("simclr", digits_pack.path, out, epochs=2, batch_size=64, **changes)
    last = read_metrics(out / "metrics.jsonl")[-8:]
    assert sum(r["contrast_top1"] for r in last) / len(last) > 0.15  # chance: 0.008
    assert knn_top1_of_run(out, digits_pack) > 0.935  # untrained: 0.74
