"""VICReg: constants, and the result of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.vicreg import Config, VicReg
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
    assert weights == (25.0, 25.0, 1.0)
    assert (config.projector, config.batch_size, config.epochs) == ((8192, 8192, 8192), 2048, 1000)
    small = Config(pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=16, projector=(8, 4))
    matrices, vectors = VicReg(small).make_optimizer().param_groups
    assert (matrices["lr"], matrices["adapt"], matrices["weight_decay"]) == (pytest.approx(1.6), True, 1e-6)
    assert (vectors["adapt"], vectors["weight_decay"]) == (False, 0.0)


@pytest.mark.floor
def test_learns_features_of_digits(data: Data, tmp_path: Path) -> None:
    check("vicreg", trainings.vicreg(data, tmp_path / "run", 0))
