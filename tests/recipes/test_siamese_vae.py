"""Siamese VAE: constants, one step, and the result of a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.train.distributed import seed_everything
from engine.train.samples import load_samples
from loaders import LoaderOptions, build_loader, open_pack
from loaders.batch import Batch
from loaders.views import presets
from recipes.siamese_vae import Config, SiameseVae
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.short_runs import run_short


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.backbone, config.epochs, config.beta, config.margin) == ("alexnet_bn", 20, 1.0, 0.5)


def test_a_step_weighs_the_triplets_of_the_latent_means() -> None:
    config = Config(
        pack=Path("p"),
        out=Path("o"),
        backbone="tiny_resnet",
        resolution=16,
        num_latent=4,
        decoder_width=2,
        triplet_weight=0.0,
    )
    views = (torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16))
    index = torch.arange(4)
    losses = []
    for weight in (0.0, 10.0):
        seed_everything(0)
        recipe = SiameseVae(replace(config, triplet_weight=weight))
        output = recipe.training_step(Batch(views, None, index, index >= 0), 0)
        losses.append(float(output.loss.detach()))
    triplet = float(output.metrics["triplet"])
    assert triplet > 0
    assert losses[1] - losses[0] == pytest.approx(10 * triplet, rel=1e-3)


@pytest.mark.floor
def test_learns_to_order_digits_and_features(data: Data, tmp_path: Path) -> None:
    check("siamese_vae", trainings.siamese_vae(data, tmp_path / "run", 0))


def test_the_positive_is_another_crop_or_an_affine_view(few_digits: Path, tmp_path: Path) -> None:
    """The saved views of a run: with --positive affine, the anchors are the whole images."""
    run_short("siamese_vae", few_digits, tmp_path / "run", positive="affine", max_steps=1)
    (anchor, positive), rows = load_samples(tmp_path / "run")
    pack = open_pack(few_digits)
    view, options = (presets.evaluation(16),), LoaderOptions(num_threads=1)
    with build_loader(pack.split("unlabeled"), view, 32, options=options, mode="eval") as loader:
        whole = torch.cat([batch.views[0] for batch in loader.epoch(0)])
    first = int(pack.split("unlabeled").rows(np.array([0]))[0])
    torch.testing.assert_close(anchor, whole[rows - first])
    assert float((positive - anchor).abs().mean()) > 0.1
    assert torch.corrcoef(torch.stack([positive.flatten(), anchor.flatten()]))[0, 1] > 0.3
