"""VICReg: constants and what a short run learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.metrics import read_metrics
from loaders.packs import Pack
from recipes.vicreg import Config, VicReg
from tests.recipes.frozen import knn_top1_of_run
from tests.recipes.short_runs import run_short


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
    assert weights == (25.0, 25.0, 1.0)
    assert (config.projector, config.batch_size, config.epochs) == ((8192, 8192, 8192), 2048, 1000)
    small = Config(pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=16, projector=(8, 4))
    matrices, vectors = VicReg(small).make_optimizer().param_groups
    assert (matrices["lr"], matrices["adapt"], matrices["weight_decay"]) == (pytest.approx(1.6), True, 1e-6)
    assert (vectors["adapt"], vectors["weight_decay"]) == (False, 0.0)


def test_learns_features_of_digits(digits_pack: Pack, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"projector": (64, 64), "min_crop": 0.5, "warmup_epochs": 0.3, "lr": 4.0, "max_sigma": 0.5}
    run_short("vicreg", digits_pack.path, out, epochs=2, batch_size=64, **changes)
    records = read_metrics(out / "metrics.jsonl")
    assert records[-1]["variance"] < 0.6 * records[0]["variance"]
    assert knn_top1_of_run(out, digits_pack) > 0.93  # untrained: 0.74
