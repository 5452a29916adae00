"""RotNet: the paper's constants, one step, and the result of a short run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from engine.nets.alexnet import AlexNet
from engine.train.distributed import seed_everything
from loaders import build_loader
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.views import presets
from recipes.rotnet import Config, RotNet
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.short_runs import run_short


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
    config = Config(pack=Path("p"), out=Path("o"), backbone="test_resnet", resolution=16, hidden=())
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


def test_rotations_of_images_held_out_are_measured(digits_pack: Pack, tmp_path: Path) -> None:
    short: dict[str, Any] = {"hidden": (), "max_steps": 1, "probe_every_epochs": 0, "split": "train"}
    run_short("rotnet", digits_pack.path, tmp_path / "run", test_split="test", **short)
    found = json.loads((tmp_path / "run" / "rotations.json").read_text())
    assert found["num_turned"] == 4 * 445
    checkpoint = safetensors.torch.load_file(
        tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors"
    )
    config = Config(pack=digits_pack.path, out=tmp_path, backbone="test_resnet", resolution=16, hidden=())
    recipe = RotNet(config)
    recipe.load_state_dict(checkpoint)
    recipe.eval()
    view = (presets.evaluation(16),)
    with build_loader(digits_pack.split("test"), view, 445, mode="eval") as loader, torch.no_grad():
        (batch,) = loader.epoch(0)
        logits = [
            recipe.classifier(recipe.backbone(torch.rot90(batch.views[0], k, (2, 3)))) for k in range(4)
        ]
    right = sum(int((part.argmax(1) == k).sum()) for k, part in enumerate(logits))
    assert found["top1"] == pytest.approx(right / (4 * 445), abs=2 / (4 * 445))
    with pytest.raises(UserError, match="images of --split: expected no image of split 'train'"):
        run_short("rotnet", digits_pack.path, tmp_path / "o", test_split="train", allow_leak=False, **short)
