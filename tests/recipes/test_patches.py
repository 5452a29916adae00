"""Relative patches: constants, one step, and the result of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.train.distributed import seed_everything
from loaders.batch import Batch
from loaders.common.errors import UserError
from recipes.patches import Config, Patches
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


def test_defaults() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.hidden, config.backbone) == ((4096, 4096), "alexnet_bn")
    with pytest.raises(UserError, match="found 0"):
        Config(pack=Path("p"), out=Path("o"), tile_size=0)


def test_a_step_sees_the_centres_and_then_a_neighbour_of_each() -> None:
    seed_everything(0)
    config = Config(
        pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=24, tile_size=8, hidden=()
    )
    recipe = Patches(config)
    seen: list[torch.Tensor] = []
    recipe.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pattern = torch.randn(9, 3, 8, 8)
    index = torch.arange(16)
    views = tuple(tile.expand(16, 3, 8, 8) for tile in pattern)
    recipe.training_step(Batch(views, None, index, index >= 0), 0)
    cells = torch.einsum("tchw,pchw->tp", seen[0], pattern).argmax(1).tolist()
    assert cells[:16] == [4] * 16
    assert 4 not in cells[16:]
    assert len(set(cells[16:])) > 4


@pytest.mark.floor
def test_learns_positions_and_features_of_digits(data: Data, tmp_path: Path) -> None:
    check("patches", trainings.patches(data, tmp_path / "run", 0))
