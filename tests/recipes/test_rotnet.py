"""RotNet: the paper's constants, one step, and what a short run learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.nets.alexnet import AlexNet
from engine.train.distributed import seed_everything
from loaders.batch import Batch
from recipes.rotnet import Config, RotNet
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    recipe = RotNet(config)
    assert isinstance(recipe.backbone, AlexNet)
    assert [m.out_features for m in recipe.classifier if isinstance(m, nn.Linear)] == [4096, 4096, 4]
    (group,) = recipe.make_optimizer().param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.01,
        0.9,
        True,
        5e-4,
    )
    factor = recipe.make_schedule(10, 500)
    assert [factor(s) for s in (0, 149, 150, 300, 450)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])


def test_a_step_shows_every_image_in_four_rotations() -> None:
    seed_everything(0)
    config = Config(pack=Path("p"), out=Path("o"), backbone="tiny_resnet", resolution=16, hidden=())
    recipe = RotNet(config)
    seen: list[torch.Tensor] = []
    recipe.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x, index = torch.randn(2, 3, 16, 16), torch.arange(2)
    output = recipe.training_step(Batch((x,), None, index, index >= 0), 0)
    assert seen[0].shape == (8, 3, 16, 16)
    torch.testing.assert_close(seen[0][4:6], x.flip(2, 3))
    assert 0.0 <= float(output.metrics["rotation_top1"]) <= 1.0


@pytest.mark.floor
def test_learns_rotations_and_features_of_digits(data: Data, tmp_path: Path) -> None:
    check("rotnet", trainings.rotnet(data, tmp_path / "run", 0))
