"""The semi-supervised GAN on the digits: its networks, sheets, collapse, and short runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.nets.backbones import load_backbone
from engine.nets.classifier import load_classifier
from engine.nets.gan_networks import Generator
from engine.objectives.ssl_gan import discriminator_loss, diversity, feature_matching_loss
from engine.train.distributed import seed_everything
from engine.train.draws import StepDraws
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes.ssl_gan import Config, SslGan, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.labelled import check_exact_runs


@pytest.fixture
def config(data: Data, little_pack: Pack, tmp_path: Path) -> Config:
    return replace(trainings.ssl_gan_config(data, tmp_path / "run"), pack=little_pack.path)


@pytest.mark.parametrize("resolution", [16, 24, 32, 64, 96])
def test_generator_makes_images_of_the_resolution(resolution: int) -> None:
    images = Generator(resolution, 8, 4)(torch.rand(5, 8))
    assert images.shape == (5, 3, resolution, resolution)
    assert images.abs().max() <= 1


def test_each_loss_teaches_its_own_network(config: Config) -> None:
    """In a joint step, each network gets exactly the gradient of its own loss."""
    seed_everything(0)
    recipe = SslGan(replace(config, dropout=0.0), "abc")
    rows = torch.arange(8)
    few, many, labels = torch.randn(4, 3, 16, 16), torch.randn(8, 3, 16, 16), rows[:4] % 3
    pair = PairedBatch(Batch((few,), labels, rows[:4], rows[:4] >= 0), Batch((many,), None, rows, rows >= 0))

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        recipe.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in recipe.named_parameters() if p.grad is not None}

    whole = gradients(recipe.training_step(pair, 3).loss)
    assert len(whole) == sum(1 for p in recipe.parameters() if p.requires_grad)
    generated = recipe.generate(StepDraws(config.seed, 3, many.device).uniform(8, 16))
    matching = feature_matching_loss(recipe.classifier.backbone(many), recipe.classifier.backbone(generated))
    logits = recipe.classify(few, many, generated.detach())
    alone = {
        "generator": gradients(matching),
        "classifier": gradients(discriminator_loss(logits[0], labels, *logits[1:]).loss),
    }
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, alone[name.split(".")[0]][name], rtol=1e-3, atol=1e-6)
    assert any(gradient.any() for name, gradient in whole.items() if name.startswith("generator."))


def test_each_network_has_its_rate_and_the_average_follows(config: Config) -> None:
    recipe = SslGan(replace(config, ema_decay=0.75), "abc")
    rates = {p: group["lr"] for group in recipe.make_optimizer().param_groups for p in group["params"]}
    assert {rates[p] for p in recipe.classifier.parameters()} == {3e-3}
    assert {rates[p] for p in recipe.generator.parameters()} == {1e-3}
    before = recipe.average.head.bias.clone()
    with torch.no_grad():
        recipe.classifier.head.bias.add_(1.0)
    recipe.after_step(100)
    torch.testing.assert_close(recipe.average.head.bias, before + 0.25)


@pytest.mark.floor
def test_learns_the_digits_and_leaves_sheets(config: Config, data: Data) -> None:
    check("gan", trainings.gan(data, config.out, 0))
    sheets = sorted((config.out / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["epoch-0001.png", "last.png"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (12 * 18 + 2, 6 * 18 + 2)
    assert load_classifier(config.out, "ema").backbone_name == "gan_discriminator_16"
    assert load_backbone(config.out).num_features == 32


def test_a_run_that_ends_early_claims_no_epoch_and_says_its_collapse(
    config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    run(replace(config, lr_generator=0.0, max_steps=2, collapse_share=50.0))
    assert [sheet.name for sheet in (config.out / "samples").iterdir()] == ["last.png"]
    assert "samples/last.png: the generator has collapsed" in capfd.readouterr().err
    run(replace(config, out=config.out / "fine", lr_generator=0.0, epochs=1, max_steps=2, collapse_share=0.0))
    assert "collapsed" not in capfd.readouterr().err


@torch.no_grad()
def test_a_generator_of_one_image_has_collapsed(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """With the default --collapse-share, a warning comes for equal images but not for varied ones."""
    seed_everything(0)
    recipe = SslGan(replace(config, collapse_share=0.1), "abc")
    for _ in range(40):
        images = recipe.generate(torch.rand(32, 16))  # lets BatchNorm's statistics settle
    recipe.real_spread.copy_(diversity(images))
    recipe.write_sheet("varied")
    assert "collapsed" not in capsys.readouterr().err
    deaf = next(m for m in recipe.generator.modules() if isinstance(m, torch.nn.Linear))
    torch.nn.init.zeros_(deaf.weight)  # the generator now ignores the noise
    recipe.write_sheet("alike")
    assert "samples/alike.png: the generator has collapsed" in capsys.readouterr().err


def test_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path) -> None:
    check_exact_runs(config, run, tmp_path, steps=4)


@pytest.mark.parametrize("option", ["lr_head", "lr_vectors", "momentum", "weight_decay"])
def test_an_option_that_its_adam_lacks_is_refused(option: str, config: Config) -> None:
    with pytest.raises(UserError, match=f"{option}: expected none, since Adam moves .* found 0.5; leave it"):
        replace(config, **{option: 0.5})


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="gan_discriminator_<width>, found 'resnet50'"):
        replace(config, backbone="resnet50")
    with pytest.raises(UserError, match="noise_size: expected more than 0"):
        replace(config, noise_size=0)
    with pytest.raises(UserError, match="resolution: expected 4, 5, 6 or 7 times 4, 8, 16 or 32"):
        run(replace(config, resolution=18))
