"""Supervised training on the digits: short runs, and fine-tuning with a frozen backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.choices import LabeledView
from engine.nets.classifier import load_classifier
from engine.objectives.supervised import draw_share
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import seed_everything
from loaders import build_loader
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.epochs import EpochLoader
from loaders.packs import Pack
from loaders.views.geometry import PaddedCrop
from recipes.supervised import Config, Supervised, run, view_of
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.labelled import FEW, check_exact_runs


@pytest.fixture
def config(little_pack: Pack, tmp_path: Path) -> Config:
    return Config(pack=little_pack.path, out=tmp_path / "run", **(FEW | {"min_crop": 0.6}))


@pytest.mark.floor
def test_learns_the_digits_from_ten_labels_each(data: Data, tmp_path: Path) -> None:
    check("supervised_digits", trainings.supervised_digits(data, tmp_path / "run", 0))


def test_a_test_loader_that_cannot_be_opened_leaves_no_loader_open(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[EpochLoader] = []

    def build(*args: Any, **options: Any) -> EpochLoader:
        if opened:
            raise UserError("no memory for another")
        opened.append(build_loader(*args, **options))
        return opened[0]

    monkeypatch.setattr("loaders.classification.build_loader", build)
    with pytest.raises(UserError, match="no memory for another"):
        run(config)
    with pytest.raises(RuntimeError, match="this loader is closed"):
        opened[0].epoch(0)


def test_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path) -> None:
    check_exact_runs(
        replace(config, epochs=4, ema_decay=0.9, mixing="cutmix", label_smoothing=0.1), run, tmp_path, steps=6
    )


def test_the_schedule_of_speed_runs_resumes_exactly(config: Config, tmp_path: Path) -> None:
    """This covers whitened kernels, Muon, growing views, flips in turns and tests with mirrored images."""
    speedy = replace(
        *(config,), backbone="compact_cnn", optimizer="muon", optimizer_lr=0.03, view="shift",
        flips="in_turns", flip_p=0.5,
        schedule="one_cycle", start_resolution=8, lr_vectors=4.0, test_flip=True, ema_decay=0.9, epochs=4,
    )  # fmt: skip
    check_exact_runs(speedy, run, tmp_path, steps=6)
    state = load_classifier(speedy.out, "ema").backbone.state_dict()
    assert bool(state["stem.is_set"])
    assert torch.equal(
        state["stem.kernels"], load_classifier(speedy.out, "raw").backbone.state_dict()["stem.kernels"]
    )
    plain = run(replace(speedy, out=tmp_path / "plain", init=speedy.out, epochs=1))
    kept = load_classifier(plain.out, "raw").backbone.state_dict()
    assert torch.equal(kept["stem.kernels"], state["stem.kernels"])


@pytest.mark.parametrize(
    ("view", "geometry", "num_operations"),
    [("crop", "RandomResizedCrop", 1), ("shift", "PaddedCrop", 1), ("gentle", "PaddedCrop", 3),
     ("strong", "PaddedCrop", 3)],
)  # fmt: skip
def test_views_by_name(config: Config, view: LabeledView, geometry: str, num_operations: int) -> None:
    found = view_of(replace(config, view=view))
    assert type(found.geometry).__name__ == geometry
    assert len(found.operations) == num_operations


def test_the_shift_is_a_share_of_the_side(config: Config) -> None:
    assert view_of(replace(config, view="shift")).geometry == PaddedCrop(0.125)
    assert view_of(replace(config, view="shift", shift=0.0625)).geometry == PaddedCrop(0.0625)
    for changes in ({"shift": 0.1}, {"view": "shift", "shift": 0.6}):
        with pytest.raises(UserError, match="shift: expected at most"):
            replace(config, **changes)


def test_a_step_mixes_and_smooths_as_the_papers_do(config: Config) -> None:
    """Labels get the weights of their images, each is smoothed, and the average is updated."""
    seed_everything(0)
    changed = replace(config, mixing="mixup", mixing_alpha=0.3, label_smoothing=0.2, ema_decay=0.75)
    recipe = Supervised(replace(changed, warmup_epochs=1.0), "abc").eval()
    with torch.no_grad():
        recipe.classifier.head.weight.mul_(10.0)
    x, labels, step = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 2]), 4
    partner, share = torch.tensor([1, 0, 3, 2]), draw_share(0.3, config.seed, step)
    found = recipe.training_step(Batch((x,), labels, labels, labels >= 0), step).loss
    targets = torch.nn.functional.one_hot(labels, 3) * 0.8 + 0.2 / 3
    logits = recipe.classifier(share * x + (1 - share) * x[partner])
    mixture = share * targets + (1 - share) * targets[partner]
    expected = -(mixture * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    before = recipe.average.head.bias.clone()
    with torch.no_grad():
        recipe.classifier.head.bias.add_(1.0)
    recipe.after_step(100)
    torch.testing.assert_close(recipe.average.head.bias, before + 0.25)
    factor = recipe.make_schedule(10, 110)
    assert (factor(5), factor(10), factor(60), factor(110)) == pytest.approx((0.5, 1.0, 0.5, 0.0))


def forget_rules(out: Path) -> None:
    """Rewrite a run's checkpoint in the older form without rules."""
    (meta,) = out.glob("checkpoints/*/meta.json")
    said = json.loads(meta.read_bytes())
    said = {key: value for key, value in said.items() if key not in ("rules", "sha256")}
    meta.write_text(
        json.dumps({**said, "sha256": sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()})
    )


def test_a_checkpoint_of_another_rule_for_the_average_is_refused(config: Config) -> None:
    run(replace(config, ema_decay=0.9, max_steps=1))
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    forget_rules(config.out)
    with pytest.raises(UserError, match="for average of the weights, found 'that of an earlier") as caught:
        run(replace(config, ema_decay=0.9, max_steps=2, resume=True))
    assert "\n" not in str(caught.value)
    kept = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    assert {path for path in kept if kept[path] != before.get(path)} == set(config.out.rglob("meta.json"))


def test_a_checkpoint_from_before_there_were_rules_goes_on_where_none_holds(config: Config) -> None:
    run(replace(config, max_steps=1))
    forget_rules(config.out)
    assert run(replace(config, max_steps=2, resume=True)).step == 2


def test_few_labels_make_one_whole_batch(config: Config) -> None:
    summary = run(replace(config, batch_size=256, epochs=2))
    assert (summary.step, summary.total_steps) == (2, 2)


def test_a_frozen_backbone_keeps_its_weights_and_statistics(config: Config, tmp_path: Path) -> None:
    first = run(replace(config, epochs=1))
    tuned = run(replace(config, out=tmp_path / "tuned", init=first.out, freeze_backbone=True, epochs=1))
    before, after = (load_classifier(out, "raw") for out in (first.out, tuned.out))
    for name, tensor in before.backbone.state_dict().items():
        assert torch.equal(tensor, after.backbone.state_dict()[name]), name
    assert not torch.equal(before.head.weight, after.head.weight)
    assert read_accuracy(tuned.out)["raw"].num_images == 200


def test_mistakes(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze_backbone: expected --init"):
        replace(config, freeze_backbone=True)
    with pytest.raises(UserError, match="test_flip: expected --flip-p above 0"):
        replace(config, test_flip=True, flip_p=0.0)
    with pytest.raises(UserError, match="keep_head: expected --init"):
        run(replace(config, keep_head=True))
