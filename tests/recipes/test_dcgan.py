"""DCGAN on the digits, without labels: gradients of each network, and the features that result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.nets.backbones import load_backbone
from engine.nets.classifier import load_classifier
from engine.train.distributed import seed_everything
from engine.train.draws import StepDraws
from engine.train.metrics import read_metrics
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes import ssl_gan
from recipes.dcgan import Config, Dcgan, run
from tests.recipes.labelled import FEW
from tests.recipes.short_runs import SMALL, run_short


@pytest.fixture
def config(few_digits: Path, tmp_path: Path) -> Config:
    changes = {**SMALL["dcgan"], "resolution": 16, "batch_size": 32, "trackers": (), "progress": False}
    return Config(pack=few_digits, out=tmp_path / "run", **changes)


def test_each_loss_teaches_its_own_network(config: Config) -> None:
    """In a joint step, each network gets exactly the gradient of its own loss."""
    seed_everything(0)
    recipe = Dcgan(config)
    rows = torch.arange(8)
    x = torch.randn(8, 3, 16, 16)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        recipe.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in recipe.named_parameters() if p.grad is not None}

    whole = gradients(recipe.training_step(Batch((x,), None, rows, rows >= 0), 3).loss)
    assert len(whole) == sum(1 for p in recipe.parameters() if p.requires_grad)
    noise = StepDraws(config.seed, 3, x.device).uniform(8, config.noise_size)

    def told(images: torch.Tensor) -> torch.Tensor:
        return recipe.head(recipe.backbone(images)).sigmoid()

    generated = recipe.generate(noise)
    to_generator = gradients(-told(generated).log().mean())
    apart = -told(x).log().mean() / 2 - (1 - told(generated.detach())).log().mean() / 2
    to_discriminator = gradients(apart)
    for name, gradient in whole.items():
        alone = to_generator if name.startswith("generator.") else to_discriminator
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-6)
    assert any(gradient.any() for name, gradient in whole.items() if name.startswith("generator."))


def test_learns_to_tell_them_apart_and_leaves_sheets(digits_pack: Pack, tmp_path: Path) -> None:
    """With a generator that does not learn, real digits are soon told from generated images."""
    out = tmp_path / "run"
    run_short("dcgan", digits_pack.path, out, lr_generator=0.0, lr=3e-3, epochs=1)
    records = read_metrics(out / "metrics.jsonl")
    assert records[0]["p_real"] - records[0]["p_generated"] < 0.2
    last = records[-8:]
    assert sum(r["p_real"] - r["p_generated"] for r in last) / len(last) > 0.7
    assert [sheet.name for sheet in (out / "samples").iterdir()] == ["last.png"]


def test_the_discriminator_then_classifies(config: Config, little_pack: Pack, tmp_path: Path) -> None:
    """A classifier, here that of the semi-supervised GAN, starts from the discriminator's weights."""
    run(replace(config, max_steps=1))
    few = FEW | {"unlabeled_splits": ("train",), "backbone": config.backbone, "lr": 0.0, "lr_generator": 0.0}
    more = {"generator_width": 4, "init": config.out, "max_steps": 1, "test_split": ""}
    ssl_gan.run(ssl_gan.Config(pack=little_pack.path, out=tmp_path / "ssl", **(few | more)))
    seed_everything(0)
    x = torch.randn(2, 3, 16, 16)
    recipe = Dcgan(config).eval()
    assert recipe.backbone_name == load_classifier(tmp_path / "ssl", "raw").backbone_name
    started = load_classifier(tmp_path / "ssl", "raw").backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(started(x), load_backbone(config.out).eval()(x))


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="gan_discriminator_<width>, found 'resnet50'"):
        replace(config, backbone="resnet50")
    with pytest.raises(UserError, match=r"dropout: expected a value in \[0, 1\)"):
        replace(config, dropout=1.0)
    with pytest.raises(UserError, match="resolution: expected 4, 5, 6 or 7 times 4, 8, 16 or 32"):
        run(replace(config, resolution=18))
