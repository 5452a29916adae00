"""The semi-supervised GAN on the digits: its networks, sheets, collapse, and short runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.classifier import load_classifier
from engine.distributed import seed_everything
from engine.gan_networks import Generator
from engine.metrics import read_metrics
from engine.networks import load_backbone
from engine.objectives.ssl_gan import diversity
from loaders.batch import Batch, PairedBatch
from loaders.errors import UserError
from loaders.packs import Pack
from recipes.ssl_gan import Config, SslGan, run
from tests.recipes.labelled import FEW, check_exact_runs


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    few = FEW | {"backbone": "gan_discriminator_16", "lr": 3e-3, "labels_per_class": 10, "epochs": 4}
    return Config(
        pack=digits_pack.path,
        out=tmp_path / "run",
        unlabeled_splits=("train",),
        mu=2,
        noise_size=16,
        generator_width=8,
        dropout=0.1,
        lr_generator=1e-3,
        ema_decay=0.9,
        **few,
    )


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_generator_makes_images_of_the_resolution(resolution: int) -> None:
    images = Generator(resolution, 8, 4)(torch.rand(5, 8))
    assert images.shape == (5, 3, resolution, resolution)
    assert images.abs().max() <= 1


def test_each_loss_teaches_its_own_network(config: Config) -> None:
    seed_everything(0)
    recipe = SslGan(replace(config, dropout=0.0), 3)
    rows = torch.arange(8)
    few, many = torch.randn(4, 3, 16, 16), torch.randn(8, 3, 16, 16)
    pair = PairedBatch(
        Batch((few,), rows[:4] % 3, rows[:4], rows[:4] >= 0), Batch((many,), None, rows, rows >= 0)
    )
    output = recipe.training_step(pair, 0)
    output.loss.backward()
    whole = {name: p.grad.clone() for name, p in recipe.named_parameters() if p.grad is not None}
    recipe.zero_grad()
    noise = torch.rand(8, 16)
    recipe.fixed_features(recipe.generate(noise)).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in recipe.classifier.parameters())
    assert all(p.grad is not None for p in recipe.generator.parameters())
    assert {name.split(".")[0] for name in whole} == {"classifier", "generator"}
    assert len(whole) == sum(1 for p in recipe.parameters() if p.requires_grad)


def test_learns_the_digits_and_leaves_sheets(config: Config) -> None:
    summary = run(config)
    assert summary.accuracy is not None
    print(summary)
    assert summary.accuracy.top1 > 0.6
    sheets = sorted((config.out / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == [f"epoch-{epoch:04d}.png" for epoch in (1, 2, 3, 4)]
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (12 * 18 + 2, 6 * 18 + 2)
    records = read_metrics(config.out / "metrics.jsonl")
    assert records[-1]["p_real"] > records[-1]["p_generated"]
    assert load_classifier(config.out, "ema").backbone_name == "gan_discriminator_16"
    assert load_backbone(config.out).num_features == 32


def test_a_collapse_is_said(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    run(replace(config, lr_generator=0.0, epochs=1, max_steps=2, collapse_share=50.0))
    assert "epoch 1: the generator has collapsed" in capfd.readouterr().err
    run(replace(config, out=config.out / "fine", lr_generator=0.0, epochs=1, max_steps=2, collapse_share=0.0))
    assert "collapsed" not in capfd.readouterr().err


@torch.no_grad()
def test_a_generator_of_one_image_has_collapsed(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """With the default share: images that are all alike are named, those that vary like real ones are not."""
    seed_everything(0)
    recipe = SslGan(replace(config, collapse_share=0.1), 3)
    for _ in range(40):
        images = recipe.generate(torch.rand(32, 16))  # its BatchNorm comes to know what it makes
    recipe.real_spread.copy_(diversity(images))
    recipe.write_sheet(1)
    assert "collapsed" not in capsys.readouterr().err
    deaf = next(m for m in recipe.generator.modules() if isinstance(m, torch.nn.Linear))
    torch.nn.init.zeros_(deaf.weight)  # it no longer hears the noise
    recipe.write_sheet(2)
    assert "epoch 2: the generator has collapsed" in capsys.readouterr().err


def test_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path) -> None:
    check_exact_runs(config, run, tmp_path, steps=4)


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="gan_discriminator_<width>, found 'resnet50'"):
        replace(config, backbone="resnet50")
    with pytest.raises(UserError, match="resolution: expected 16, 32, 64 or 128"):
        run(replace(config, resolution=24))
