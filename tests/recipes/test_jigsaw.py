"""Jigsaw: constants, one step, and the result of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.evaluate.online_probe import read_probe
from engine.nets.backbones import load_backbone
from engine.train.distributed import seed_everything
from loaders.batch import Batch
from loaders.common.errors import UserError
from recipes.jigsaw import Config, Jigsaw
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.short_runs import run_short


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.resolution, config.tile_size, config.num_permutations) == (225, 64, 1000)
    assert (config.gray_p, config.tile_features, config.hidden) == (0.3, 1024, (4096,))
    assert (config.lr, config.batch_size, config.backbone) == (0.01, 256, "alexnet_bn")
    with pytest.raises(UserError, match="expected 1 to 75, a third of the resolution, found 76"):
        Config(pack=Path("p"), out=Path("o"), tile_size=76)


def test_a_step_sees_nine_tiles_in_the_order_of_its_permutation() -> None:
    seed_everything(0)
    config = Config(
        pack=Path("p"),
        out=Path("o"),
        backbone="tiny_resnet",
        resolution=24,
        tile_size=8,
        num_permutations=3,
        tile_features=4,
        hidden=(),
    )
    recipe = Jigsaw(config)
    seen: list[torch.Tensor] = []
    recipe.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pattern = torch.randn(9, 3, 8, 8)
    views = tuple(tile.expand(2, 3, 8, 8) for tile in pattern)
    index = torch.arange(2)
    recipe.training_step(Batch(views, None, index, index >= 0), 0)
    tiles = seen[0].view(2, 9, 3, 8, 8)
    for image in tiles:
        similarity = torch.einsum("tchw,pchw->tp", image, pattern)
        assert similarity.argmax(1).tolist() in recipe.permutations.tolist()


@pytest.mark.parametrize("name", ["jigsaw", "patches"])
def test_a_transformer_of_tiles_is_measured_on_whole_images(
    name: str, few_digits: Path, tmp_path: Path
) -> None:
    """Its position embeddings are those of a tile; the measurement does not change the run."""
    tiles = {"backbone": "test_vit", "resolution": 96, "tile_size": 32, "epochs": 1}
    for every in (1, 0):
        run_short(name, few_digits, tmp_path / str(every), **tiles, probe_every_epochs=every)
    (record,) = read_probe(tmp_path / "1")
    assert record["num_features"] == 64
    probed, plain = ((tmp_path / every / "backbone.safetensors").read_bytes() for every in "10")
    assert probed == plain
    assert load_backbone(tmp_path / "1")(torch.zeros(1, 3, 96, 96)).shape == (1, 64)


@pytest.mark.floor
def test_learns_to_order_the_tiles_of_digits(data: Data, tmp_path: Path) -> None:
    check("jigsaw", trainings.jigsaw(data, tmp_path / "run", 0))
