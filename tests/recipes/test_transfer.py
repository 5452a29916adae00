"""Few-label transfer: BatchNorm modes, separate rates, equal labels for both ways to start, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoint import newest_valid
from engine.distributed import seed_everything
from engine.few_labels import SCRATCH, read_results
from engine.metrics import read_metrics
from engine.networks import build_backbone, load_backbone
from engine.runs import open_run, save_backbone
from engine.samples import load_samples
from loaders.batch import Batch
from loaders.errors import UserError
from loaders.packs import Pack
from recipes.transfer import Config, FineTuning, Transfer, run

QUICK = FineTuning(lr_backbone=0.01, lr_classifier=0.1, batchnorm="batch", steps=3, min_crop=0.6)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a network that never trained."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    open_run(folder, "barlow", {"backbone": "tiny_resnet", "resolution": 32}, (), resume=False)
    seed_everything(7)
    network = build_backbone("tiny_resnet", 32)
    save_backbone(folder, network, {"backbone": "tiny_resnet", "resolution": "32"})
    return folder


@pytest.fixture
def config(digits_pack: Pack, pretrained: Path, tmp_path: Path) -> Config:
    return Config(
        pack=digits_pack.path,
        init=pretrained,
        out=tmp_path / "transfer",
        labels_per_class=(2,),
        seeds=(0,),
        pretrained=QUICK,
        from_scratch=QUICK,
        flip_p=0.0,
        num_threads=1,
    )


def transfer(tuning: FineTuning) -> Transfer:
    seed_everything(0)
    return Transfer(build_backbone("tiny_resnet", 32), "tiny_resnet", 10, tuning)


def batch_norms(recipe: Transfer) -> list[nn.BatchNorm2d]:
    return [m for m in recipe.backbone.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_batchnorm_follows_its_mode(mode: str) -> None:
    recipe = transfer(replace(QUICK, batchnorm=mode)).train()  # type: ignore[arg-type]
    assert all(norm.training == (mode == "batch") for norm in batch_norms(recipe))
    assert recipe.classifier.training
    before = [norm.running_mean.clone() for norm in batch_norms(recipe)]
    x = torch.randn(8, 3, 32, 32)
    recipe.training_step(Batch((x,), torch.arange(8), torch.arange(8), torch.ones(8, dtype=torch.bool)), 0)
    unchanged = [torch.equal(b, n.running_mean) for b, n in zip(before, batch_norms(recipe), strict=True)]
    assert all(unchanged) == (mode == "running")
    assert not any(norm.training for norm in batch_norms(recipe.eval()))


def test_backbone_and_classifier_have_their_own_rates() -> None:
    recipe = transfer(FineTuning(lr_backbone=0.25, lr_classifier=0.5, batchnorm="batch"))
    rates = {p: group["lr"] for group in recipe.make_optimizer().param_groups for p in group["params"]}
    assert {rates[p] for p in recipe.backbone.parameters()} == {0.25}
    assert {rates[p] for p in recipe.classifier.parameters()} == {0.5}
    assert len(rates) == len(list(recipe.parameters()))


def test_rate_zero_leaves_the_backbone_as_it_was(config: Config, pretrained: Path) -> None:
    frozen = FineTuning(lr_backbone=0.0, lr_classifier=0.1, batchnorm="running", steps=3, min_crop=0.6)
    run(replace(config, pretrained=frozen, beside_scratch=False))
    before = load_backbone(pretrained).state_dict()
    after = load_backbone(config.out / "pretrained-2-labels-seed-0").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run(replace(config, beside_scratch=False, out=config.out / "moving"))
    moved = load_backbone(config.out / "moving" / "pretrained-2-labels-seed-0").state_dict()
    assert not all(torch.equal(before[name], moved[name]) for name in before)


def test_both_ways_to_start_see_the_same_labels_and_runs_repeat(config: Config) -> None:
    results = run(replace(config, labels_per_class=(1, 2)))
    assert [(r.init == SCRATCH, r.labels_per_class, r.steps) for r in results] == [
        (False, 1, 3),
        (True, 1, 3),
        (False, 2, 3),
        (True, 2, 3),
    ]
    assert {r.num_test for r in results} == {445}
    assert read_results(config.out)[0] == results
    folders = [config.out / f"{arm}-2-labels-seed-0" for arm in ("pretrained", "scratch")]
    shown = [sorted(load_samples(folder)[1].tolist()) for folder in folders]
    assert shown[0] == shown[1]
    again = replace(config, out=config.out.with_name("again"))
    run(again)
    first, second = (load_backbone(out / "scratch-2-labels-seed-0") for out in (config.out, again.out))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_finished_runs_are_not_repeated(config: Config) -> None:
    first = run(config)
    folder = config.out / "pretrained-2-labels-seed-0"
    found, _ = newest_valid(folder / "checkpoints")
    assert found is not None
    written = found.stat().st_mtime_ns
    assert run(config) == first
    assert newest_valid(folder / "checkpoints")[0] == found
    assert found.stat().st_mtime_ns == written
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == [3]


def test_it_learns(config: Config) -> None:
    tuning = FineTuning(lr_backbone=0.05, lr_classifier=0.05, batchnorm="batch", steps=40, min_crop=0.6)
    (result,) = run(replace(config, labels_per_class=(10,), pretrained=tuning, beside_scratch=False))
    assert result.top1 > 0.4


def test_mistakes_are_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run at"):
        run(replace(config, init=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="ask for at most"):
        run(replace(config, labels_per_class=(1000,)))
    with pytest.raises(UserError, match="at least one number of labels"):
        run(replace(config, seeds=()))
    with pytest.raises(UserError, match="steps >= 1"):
        replace(QUICK, steps=0)
