"""FixMatch on the digits: its constants, its step, short runs, and two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.classifier import load_classifier
from engine.classifier_recipe import read_accuracy
from engine.distributed import seed_everything
from engine.metrics import read_metrics
from loaders.batch import Batch, PairedBatch
from loaders.errors import UserError
from loaders.packs import Pack
from recipes.fixmatch import Config, FixMatch, run
from tests.recipes.labelled import FEW, check_exact_runs


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    return Config(
        pack=digits_pack.path,
        out=tmp_path / "run",
        unlabeled_splits=("train",),
        mu=3,
        ema_decay=0.9,
        strong="gentle",
        **FEW,
    )


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.backbone, config.resolution, config.batch_size, config.mu) == ("wrn_28_2", 32, 64, 7)
    assert (config.threshold, config.unlabeled_weight, config.ema_decay) == (0.95, 1.0, 0.999)
    assert (config.lr, config.momentum, config.weight_decay) == (0.03, 0.9, 5e-4)
    steps = config.epochs * (50_000 // (config.mu * config.batch_size))
    assert steps == pytest.approx(2**20, rel=0.01)
    factor = FixMatch(replace(config, backbone="tiny_resnet"), 10).make_schedule(10, 1000)
    assert factor(0) == 1.0
    assert factor(1000) == pytest.approx(0.19509, abs=1e-5)
    recipe = FixMatch(replace(config, backbone="tiny_resnet"), 10)
    groups = recipe.make_optimizer().param_groups
    assert all(group["nesterov"] for group in groups)
    decays = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {True: 5e-4, False: 0.0}, "weights decay, biases and BatchNorm do not"
    assert config.labeled_split in config.unlabeled_splits, "labelled images are unlabelled ones too"
    with torch.no_grad():
        recipe.classifier.backbone.stem[1].running_mean += 1.0
    recipe.after_step(0)
    assert torch.equal(
        recipe.average.backbone.stem[1].running_mean, recipe.classifier.backbone.stem[1].running_mean
    ), "statistics are copied, not averaged"


def pair(seed: int = 0) -> PairedBatch:
    torch.manual_seed(seed)
    labeled, weak, strong = (torch.randn(n, 3, 32, 32) for n in (4, 12, 12))
    rows = torch.arange(12)
    few = rows[:4]
    return PairedBatch(
        Batch((labeled,), few % 3, few, few >= 0), Batch((weak, strong), None, rows, rows >= 0)
    )


def test_a_step_joins_the_batch_and_takes_its_guesses_without_gradient(config: Config) -> None:
    seed_everything(0)
    recipe = FixMatch(replace(config, threshold=0.0), 3)
    seen: list[int] = []
    recipe.classifier.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))

    output = recipe.training_step(pair(), 0)
    assert seen == [4 + 12 + 12]
    assert float(output.metrics["mask_rate"]) == 1.0
    total = output.metrics["supervised"] + output.metrics["unsupervised"]
    assert float(output.loss.detach()) == pytest.approx(float(total))
    nothing = FixMatch(replace(config, threshold=1.0), 3).training_step(pair(), 0).metrics
    assert float(nothing["unsupervised"]) == 0.0


def test_the_average_follows_the_weights(config: Config) -> None:
    recipe = FixMatch(replace(config, ema_decay=0.75), 3)
    before = recipe.average.head.weight.clone()
    with torch.no_grad():
        recipe.classifier.head.weight += 1.0
    recipe.after_step(0)
    torch.testing.assert_close(recipe.average.head.weight, before + 0.25)
    assert recipe.best is recipe.average


def test_learns_the_digits_from_few_labels_and_the_unlabelled_ones_help(
    config: Config, tmp_path: Path
) -> None:
    summary = run(config)
    assert summary.accuracy is not None
    without = run(replace(config, out=tmp_path / "without", unlabeled_weight=0.0))
    assert without.accuracy is not None
    assert summary.accuracy.top1 > 0.84
    assert summary.accuracy.top1 > without.accuracy.top1 + 0.04
    records = read_metrics(config.out / "metrics.jsonl")
    assert records[-1]["mask_rate"] > records[0]["mask_rate"]


def test_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path) -> None:
    check_exact_runs(config, run, tmp_path, steps=6)


def test_goes_on_from_another_run(config: Config, tmp_path: Path) -> None:
    first = replace(config, epochs=1, max_steps=2)
    run(first)
    second = replace(first, out=tmp_path / "second", init=config.out, lr=0.0, weight_decay=0.0, ema_decay=0.0)
    kept = run(replace(second, keep_head=True))
    assert read_accuracy(kept.out)["raw"].num_images == read_accuracy(config.out)["ema"].num_images
    head = load_classifier(config.out, "ema").head.weight
    assert torch.equal(load_classifier(kept.out, "raw").head.weight, head)
    new = run(replace(second, out=tmp_path / "new"))
    assert not torch.equal(load_classifier(new.out, "raw").head.weight, head)
    with pytest.raises(UserError, match="expected tiny_resnet, that of --init"):
        run(replace(second, out=tmp_path / "other", backbone="wrn_28_2"))
