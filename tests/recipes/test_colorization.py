"""Colourisation: what the backbone sees, the counted colours, and that colours are learned from shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.nets.color_head import last_map
from engine.objectives.colorization import annealed_mean, rgb_to_lab
from engine.train.distributed import seed_everything
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.views.policy import IMAGENET
from recipes.colorization import Colorization, Config
from tests.recipes.short_runs import run_short


@pytest.fixture
def config(tmp_path: Path) -> Config:
    small = {"backbone": "tiny_resnet", "resolution": 16, "batch_size": 16, "head_width": 16, "lr": 3e-3}
    return Config(pack=tmp_path / "pack", out=tmp_path / "run", **small)


def views(rgb: torch.Tensor) -> Batch:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    rows = torch.arange(len(rgb))
    return Batch(((rgb - mean) / std,), None, rows, rows >= 0)


def shapes(generator: torch.Generator, size: int = 32) -> torch.Tensor:
    """Draw red images with vertical and blue ones with horizontal stripes, equally light, [N, 3, 16, 16]."""
    light = 0.3 + 0.4 * torch.rand(size, 1, 1, 16, generator=generator).expand(-1, -1, 16, -1)
    upright = torch.rand(size, generator=generator) < 0.5
    light = torch.where(upright[:, None, None, None], light, light.transpose(2, 3))
    red, blue = torch.tensor([1.3, 0.55, 0.5]), torch.tensor([0.45, 0.85, 1.4])
    return light * torch.where(upright[:, None], red, blue)[:, :, None, None]


def test_the_backbone_sees_no_colour(config: Config) -> None:
    """Images of equal lightness look equal to the backbone, and gray images stay as the loader gives them."""
    seed_everything(0)
    recipe = Colorization(config).eval()
    seen = []
    recipe.backbone.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    gray = torch.full((2, 3, 16, 16), 0.5)
    recipe.training_step(views(gray), 0)
    (x,) = seen
    raw = x * recipe.to_intensities.std + recipe.to_intensities.mean
    torch.testing.assert_close(raw, torch.full_like(raw, 0.53389), rtol=0, atol=1e-4)
    coloured = shapes(torch.Generator().manual_seed(0), 4)
    recipe.training_step(views(coloured), 0)
    raw = seen[1] * recipe.to_intensities.std + recipe.to_intensities.mean
    torch.testing.assert_close(raw[:, 0], raw[:, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(raw[:, 0], raw[:, 2], rtol=0, atol=1e-5)


def test_colours_are_counted_when_a_step_is_taken(config: Config) -> None:
    recipe = Colorization(config)
    batch = views(torch.full((2, 3, 16, 16), 0.5))
    recipe.training_step(batch, 0)
    assert not recipe.counts.any(), "a step that is left out counts nothing"
    recipe.training_step(batch, 1)
    recipe.after_step(1)
    gray = int((recipe.bins == 0).all(1).nonzero())
    assert recipe.counts[gray] == recipe.counts.sum() == 2 * 4 * 4


def test_learns_the_colours_of_shapes(config: Config) -> None:
    """Vertical stripes become red, with b* above 0, and horizontal ones blue, with b* below 0."""
    seed_everything(0)
    recipe, generator = Colorization(config).train(), torch.Generator().manual_seed(1)
    optimizer = recipe.make_optimizer()
    for step in range(40):
        optimizer.zero_grad()
        recipe.training_step(views(shapes(generator)), step).loss.backward()
        optimizer.step()
        with torch.no_grad():
            recipe.after_step(step)
    lab = rgb_to_lab(shapes(generator, 200))
    with torch.no_grad():
        logits = recipe.head(last_map(recipe.backbone, recipe.decolored(lab)))
    found = annealed_mean(logits, recipe.bins)[:, 1].mean((1, 2)) > 0
    right = (found == (lab[:, 2].mean((1, 2)) > 0)).float().mean()
    assert right > 0.9, right


def test_leaves_a_picture(few_digits: Path, tmp_path: Path) -> None:
    run_short("colorization", few_digits, tmp_path / "run", max_steps=1)
    with Image.open(tmp_path / "run" / "colorized.png") as picture:
        assert picture.size == (16 * 18 + 2, 3 * 18 + 2)


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="resolution: expected at least 16, found 8"):
        replace(config, resolution=8)
    with pytest.raises(UserError, match="head_width: expected more than 0"):
        replace(config, head_width=0)
