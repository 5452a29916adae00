"""SimCLR: constants, and the result of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.simclr import Config, SimClr
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.projector, config.temperature, config.batch_size) == ((2048, 128), 0.1, 4096)
    assert (config.lr, config.weight_decay, config.warmup_epochs) == (0.3, 1e-6, 10.0)
    small = Config(pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=16, batch_size=512)
    weights, vectors = SimClr(small).make_optimizer().param_groups
    assert (weights["lr"], weights["adapt"], weights["weight_decay"]) == (pytest.approx(0.6), True, 1e-6)
    assert (vectors["lr"], vectors["adapt"], vectors["weight_decay"]) == (pytest.approx(0.6), False, 0.0)


@pytest.mark.floor
def test_learns_to_tell_digits_apart(data: Data, tmp_path: Path) -> None:
    check("simclr", trainings.simclr(data, tmp_path / "run", 0))
