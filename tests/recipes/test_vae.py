"""VAE and autoencoder: constants, one step, and the result of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.train.distributed import seed_everything
from loaders.batch import Batch
from loaders.common.errors import UserError
from recipes.vae import Config, Vae
from tests.floors.data import Data
from tests.floors.table import check
from tests.floors.trainings import TRAININGS


def small(beta: float) -> Vae:
    seed_everything(0)
    return Vae(
        Config(
            pack=Path("p"),
            out=Path("o"),
            backbone="tiny_resnet",
            resolution=16,
            num_latent=4,
            decoder_width=2,
            beta=beta,
        )
    )


def batch_of(*views: torch.Tensor) -> Batch:
    index = torch.arange(len(views[0]))
    return Batch(views, None, index, index >= 0)


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.backbone, config.epochs, config.beta) == ("alexnet_bn", 20, 1.0)
    assert config.reconstruction == "bce"
    with pytest.raises(UserError, match="found -1"):
        Config(pack=Path("p"), out=Path("o"), beta=-1)


def test_the_code_is_noisy_and_the_plain_autoencoders_is_not() -> None:
    x = torch.randn(4, 3, 16, 16)
    for beta, changes in ((1.0, True), (0.0, False)):
        recipe = small(beta).eval()
        outputs = [recipe.training_step(batch_of(x), step) for step in (0, 0, 1)]
        losses = [float(o.metrics["reconstruction"]) for o in outputs]
        assert losses[0] == losses[1]
        assert (losses[0] != losses[2]) == changes
        assert float(outputs[0].loss.detach()) == pytest.approx(losses[0] + float(outputs[0].metrics["kl"]))


@pytest.mark.floor
@pytest.mark.parametrize("training", ["vae", pytest.param("autoencoder", marks=pytest.mark.slow)])
def test_learns_to_reconstruct_digits_and_features(training: str, data: Data, tmp_path: Path) -> None:
    check(training, TRAININGS[training](data, tmp_path / "run", 0))
    assert (tmp_path / "run" / "reconstructions.png").stat().st_size > 1000
