"""Progressive resizing: the side length of the views at each step; nothing else of a batch changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.train.growth import Growth
from engine.train.options import OptimizerOptions
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from recipes import colorization, dcgan, siamese_vae, ssl_gan, supervised, vae
from tests.engine.synthetic import SmallRecipe


def growth(first: int | None = 20, grown_at: float = 0.6, steps: int = 100) -> Growth:
    return Growth(OptimizerOptions(start_resolution=first, grown_at=grown_at), steps, SmallRecipe())


def batch_of(size: int, rows: int = 4) -> Batch:
    x = torch.arange(size, dtype=torch.float32).expand(rows, 3, size, size).contiguous()
    index = torch.arange(rows)
    return Batch((x, x.flip(-1)), index % 2, index, index >= 0)


def test_the_side_grows_by_four_pixels_in_stages_of_equal_length() -> None:
    grown, never, shrunk = growth(), growth(None), growth(64)
    sides = [grown.side(32, step) for step in range(100)]
    assert [sides.index(side) for side in (20, 24, 28, 32)] == [0, 20, 40, 60]
    assert sides == sorted(sides)
    assert growth(18).side(32, 59) == 30  # start at any size; the last stage below the full size
    assert {never.side(32, step) for step in range(100)} == {32}
    assert {shrunk.side(32, step) for step in range(100)} == {32}


def test_views_shrink_without_bias_and_the_rest_stays() -> None:
    batch = batch_of(32)
    small = growth(16)(batch, 0)
    assert [view.shape for view in small.views] == [(4, 3, 16, 16)] * 2
    assert small.views[0][0, 0, 0, 1:-1].numpy() == pytest.approx([2.5 + 2 * i for i in range(14)])
    assert all(getattr(small, part) is getattr(batch, part) for part in ("labels", "index", "valid"))
    assert growth(16)(batch, 60) is batch
    pair = PairedBatch(batch_of(32, 2), batch_of(32, 6))
    shrunk = growth(16)(pair, 0)
    assert [part.views[1].shape for part in (shrunk.labeled, shrunk.unlabeled)] == [
        (2, 3, 16, 16),
        (6, 3, 16, 16),
    ]
    assert growth(None)(pair, 0) is pair


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_views_of_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    batch = batch_of(32)
    halves = replace(batch, views=tuple(view.to(dtype) for view in batch.views))  # exact: whole numbers
    for half, whole in zip(growth(16)(halves, 0).views, growth(16)(batch, 0).views, strict=True):
        assert half.dtype == dtype
        assert torch.equal(half, whole.to(dtype))


def test_networks_of_one_size_are_refused_before_any_step() -> None:
    recipe = SmallRecipe()
    recipe.backbone, recipe.backbone_name = build_backbone("vit_tiny_patch16_224", 32), "vit_tiny_patch16_224"
    with pytest.raises(UserError, match="backbone: expected a resolution that vit_tiny_patch16_224"):
        Growth(OptimizerOptions(start_resolution=16), 10, recipe)


@pytest.mark.parametrize("recipe", [vae, siamese_vae, ssl_gan, dcgan, colorization])
def test_images_of_one_size_are_refused_before_anything_is_loaded(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^start_resolution: expected none, .* found 16; leave it out$"):
        recipe.Config(pack=tmp_path, out=tmp_path / "out", start_resolution=16)


@pytest.mark.parametrize("changes", [{"start_resolution": 4}, {"grown_at": 0.0}, {"grown_at": 1.5}])
def test_what_makes_no_growth_is_refused(changes: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        supervised.Config(pack=tmp_path, out=tmp_path / "out", **changes)  # type: ignore[arg-type]
