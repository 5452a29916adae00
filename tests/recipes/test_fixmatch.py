"""FixMatch on the digits and on two clusters: its constants, its step, learning from guesses, short runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from engine.nets.classifier import load_classifier
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import seed_everything
from loaders.batch import Batch, PairedBatch
from loaders.classification import SemiLoaders
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.manifest import read_manifest
from loaders.views import presets
from recipes import fixmatch
from recipes.fixmatch import Config, FixMatch, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.labelled import check_exact_runs


@pytest.fixture
def config(data: Data, little_pack: Pack, tmp_path: Path) -> Config:
    return replace(trainings.fixmatch_config(data, tmp_path / "run"), pack=little_pack.path)


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.backbone, config.resolution, config.batch_size, config.mu) == ("wrn_28_2", 32, 64, 7)
    assert (config.threshold, config.unlabeled_weight, config.ema_decay) == (0.95, 1.0, 0.999)
    assert (config.lr, config.momentum, config.weight_decay) == (0.03, 0.9, 5e-4)
    steps = config.epochs * (50_000 // (config.mu * config.batch_size))
    assert steps == pytest.approx(2**20, rel=0.01)
    factor = FixMatch(replace(config, backbone="tiny_resnet"), "0123456789").make_schedule(10, 1000)
    assert factor(0) == 1.0
    assert factor(1000) == pytest.approx(0.19509, abs=1e-5)
    recipe = FixMatch(replace(config, backbone="tiny_resnet"), "0123456789")
    groups = recipe.make_optimizer().param_groups
    assert all(group["nesterov"] for group in groups)
    decays = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {True: 5e-4, False: 0.0}, "weights decay, biases and BatchNorm do not"
    assert config.labeled_split in config.unlabeled_splits, "labelled images are unlabelled ones too"


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
    recipe = FixMatch(replace(config, threshold=0.0), "abc")
    seen: list[int] = []
    recipe.classifier.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))

    output = recipe.training_step(pair(), 0)
    assert seen == [4 + 12 + 12]
    assert float(output.metrics["mask_rate"]) == 1.0
    total = output.metrics["supervised"] + output.metrics["unsupervised"]
    assert float(output.loss.detach()) == pytest.approx(float(total))
    nothing = FixMatch(replace(config, threshold=1.0), "abc").training_step(pair(), 0).metrics
    assert float(nothing["unsupervised"]) == 0.0


@pytest.mark.parametrize("guesses", ["apart", "average"])
def test_guesses_in_a_pass_of_their_own_teach_what_joined_ones_do(
    guesses: Literal["apart", "average"], config: Config
) -> None:
    """In evaluation mode rows share no statistics; at the first step the average equals the network."""
    losses, gradients = [], []
    for way in ("joined", guesses):
        seed_everything(0)
        recipe = FixMatch(replace(config, threshold=0.0, guesses=way), "abc").eval()
        seen: list[int] = []
        recipe.classifier.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))  # noqa: B023
        output = recipe.training_step(pair(), 0)
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append(recipe.classifier.head.weight.grad)
    assert seen == [12, 4 + 12] if guesses == "apart" else seen == [4 + 12]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_average_guesses_in_evaluation_where_it_is_asked(config: Config) -> None:
    seed_everything(0)
    recipe = FixMatch(replace(config, threshold=0.0, guesses="average"), "abc").train()
    assert not any(module.training for module in recipe.average.modules())
    with torch.no_grad():
        recipe.average.head.weight.zero_()
        recipe.average.head.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    batch = pair()
    statistics = recipe.average.backbone.bn1.running_mean.clone()
    found = recipe.training_step(batch, 0).metrics["unsupervised"]
    assert torch.equal(recipe.average.backbone.bn1.running_mean, statistics)
    (labeled,), (_, strong) = batch.labeled.views, batch.unlabeled.views
    logits = recipe.classify(labeled, strong)[1]
    expected = torch.nn.functional.cross_entropy(logits, torch.full((12,), 2))
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_alignment_and_the_adaptive_threshold_choose_the_guesses(config: Config) -> None:
    """With a network that always predicts the second class, only alignment brings out other guesses."""
    seed_everything(0)
    plain = FixMatch(config, "abc").eval()
    with torch.no_grad():
        plain.classifier.head.bias.copy_(torch.tensor([0.0, 4.0, 0.0]))
    states = plain.state_dict()

    def judged(**changes: Any) -> tuple[torch.Tensor, Any]:
        recipe = FixMatch(replace(config, **changes), "abc").eval()
        recipe.load_state_dict(states, strict=False)
        logits = recipe.classify(pair().unlabeled.views[0])[0].detach()
        guesses, threshold = recipe.judged(logits, 0)
        assert recipe.recent is None or float(recipe.recent.classes.argmax()) == 1
        return guesses.argmax(1), threshold

    usual, threshold = judged()
    assert set(usual.tolist()) == {1}
    assert threshold == 0.95
    assert len(set(judged(align=True)[0].tolist())) > 1
    mean = float(judged(align=True, adaptive_threshold=True)[1])
    assert 1 / 3 < mean < 1
    assert judged(adaptive_threshold=True)[1].tolist() == pytest.approx([mean] * 12)


def test_the_average_follows_the_weights_and_statistics(config: Config) -> None:
    recipe = FixMatch(replace(config, ema_decay=0.75), "abc")
    norms = [network.backbone.bn1 for network in (recipe.average, recipe.classifier)]
    before, statistics = recipe.average.head.weight.clone(), norms[0].running_mean.clone()
    with torch.no_grad():
        recipe.classifier.head.weight += 1.0
        norms[1].running_mean += 1.0
        norms[1].num_batches_tracked += 3
    recipe.after_step(1000)
    torch.testing.assert_close(recipe.average.head.weight, before + 0.25)
    torch.testing.assert_close(norms[0].running_mean, statistics + 0.25)
    assert int(norms[0].num_batches_tracked) == 3
    recipe.after_step(0)
    assert torch.equal(recipe.average.head.weight, recipe.classifier.head.weight), "the warm-up's first step"
    assert recipe.network is recipe.average


def test_the_published_codes_rule_copies_slow_statistics(config: Config) -> None:
    recipe = FixMatch(replace(config, ema_statistics="copy"), "abc")
    norms = [network.backbone.bn1 for network in (recipe.average, recipe.classifier)]
    assert norms[1].momentum == 0.001
    assert FixMatch(config, "abc").classifier.backbone.bn1.momentum == 0.1
    with torch.no_grad():
        norms[1].running_mean += 1.0
    recipe.after_step(1000)
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)


@pytest.mark.floor
def test_learns_the_digits_from_few_labels(data: Data, tmp_path: Path) -> None:
    """In so few steps, rounding decides whether unlabelled images help; the next test shows that they do."""
    check("fixmatch_digits", trainings.fixmatch_digits(data, tmp_path / "run", 0))


@pytest.mark.floor
def test_guesses_on_weak_views_teach_what_the_labels_do_not(data: Data, tmp_path: Path) -> None:
    check("fixmatch_clusters", trainings.fixmatch_clusters(data, tmp_path / "run", 0))


def test_the_weak_view_guesses_and_the_strong_one_learns(config: Config) -> None:
    seed_everything(0)
    recipe = FixMatch(replace(config, threshold=0.0), "abc").eval()
    batch = pair()
    views = [view.requires_grad_() for view in batch.unlabeled.views]
    weak, strong = views
    recipe.training_step(batch, 0).loss.backward()
    assert weak.grad is not None
    assert not weak.grad.any()
    assert strong.grad is not None
    assert strong.grad.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.999, "guesses": "average", "adaptive_threshold": True},
        {"ema_decay": 0.6, "ema_statistics": "copy"},
    ],
)
def test_runs_repeat_and_resume_exactly(config: Config, changes: dict[str, Any], tmp_path: Path) -> None:
    """The runs are interrupted during the average's warm-up, and after it."""
    check_exact_runs(replace(config, **changes), run, tmp_path, steps=6)


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
    with pytest.raises(UserError, match="expected test_resnet, that of --init"):
        run(replace(second, out=tmp_path / "other", backbone="wrn_28_2"))


def test_options_that_contradict_each_other_are_refused(config: Config) -> None:
    with pytest.raises(UserError, match="threshold: expected none with --adaptive-threshold"):
        replace(config, adaptive_threshold=True, threshold=0.8)
    for option in ("align", "adaptive_threshold"):
        with pytest.raises(UserError, match="micro_batch: expected none with"):
            replace(config, micro_batch=10, **{option: True})


def test_the_usual_splits_are_those_that_the_pack_has(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = SimpleNamespace(splits=("train", "test"), path=config.pack)
    manifest = read_manifest(config.pack)
    splits = tuple(split for split in manifest.splits if split.name in pack.splits)
    manifest = replace(manifest, splits=splits)
    monkeypatch.setattr(Config, "_manifest", lambda self: manifest)
    usual = replace(config, unlabeled_splits=Config.unlabeled_splits)
    usual.check_places()
    assert usual.on_pack(pack).unlabeled_splits == ("train",)
    assert capsys.readouterr().err.startswith("unlabeled_splits: train, since ")
    for option, value in (("unlabeled_splits", ("train", "more")), ("labeled_split", "more")):
        given = replace(config, **{option: value})
        assert given.on_pack(pack) is given
        with pytest.raises(UserError, match=rf"{option}: expected a split of .*, found 'more'"):
            given.check_places()


def test_what_the_report_did_otherwise_is_an_option(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(**changes: Any) -> tuple[SemiLoaders, FixMatch]:
        seen: list[Any] = []
        monkeypatch.setattr(
            fixmatch, "run_recipe", lambda config, make, loaders: seen.extend((loaders, make()))
        )
        run(replace(config, **changes))
        return seen[0], seen[1]

    paper, usual = prepared()
    loaders, recipe = prepared(weak="flip", cutout=False, cosine="full", labeled_among_unlabeled=False)
    assert paper.unlabeled_views == (presets.weak(16, 0.0), presets.fixmatch_strong_gentle(16, 0.0))
    weak, strong = loaders.unlabeled_views
    assert loaders.views == (weak,) == (presets.weak(16, 0.0, padding=0.0),)
    assert [type(operation).__name__ for operation in strong.operations] == ["HorizontalFlip", "RandAugment"]
    assert usual.make_schedule(1, 10)(10) == pytest.approx(math.cos(7 / 16 * math.pi))
    assert recipe.make_schedule(1, 10)(10) == pytest.approx(0.0)
    assert len(paper.unlabeled) - len(loaders.unlabeled) == len(loaders.labels)
    rows = loaders.unlabeled.rows(np.arange(len(loaders.unlabeled)))
    assert not np.isin(loaders.labels.row, rows).any()
