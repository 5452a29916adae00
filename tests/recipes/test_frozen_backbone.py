"""A frozen backbone, even with dropout and BatchNorm, gives the same outputs before and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.evaluate.online_probe import OnlineProbe
from engine.nets.classifier import load_classifier
from engine.train.distributed import seed_everything
from engine.train.fine_tuning import Transfer
from engine.train.recipe import Recipe
from engine.train.tuning_config import FineTuning
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes import (
    fixmatch,
    mean_teacher,
    pseudo_label,
    self_training,
    supervised,
    temporal_ensembling,
)
from tests.engine.evaluate.test_online_probe import LabelledLoader
from tests.recipes.labelled import FEW

TUNING = FineTuning(lr_backbone=0.1, lr_classifier=0.1, batchnorm="batch")


class Noisy(nn.Module):
    """A backbone whose output changes if any part of it is in training mode."""

    modes: ClassVar[list[bool]] = []
    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        self.modes.extend(module.training for module in self.layers)
        return self.layers(x).mean((2, 3))


def build_noisy(name: str, resolution: int, weights: Mapping[str, Tensor] | None = None) -> Noisy:
    network = Noisy()
    if weights is not None:
        network.load_state_dict(weights)
    return network


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, little_pack: Pack, tmp_path: Path) -> supervised.Config:
    """Train a run with a `Noisy` backbone; return its configuration."""
    monkeypatch.setattr("engine.nets.classifier.build_backbone", build_noisy)
    monkeypatch.setattr(Noisy, "modes", [])
    monkeypatch.setattr(Noisy, "seen", [])
    options = FEW | {"epochs": 1, "min_crop": 0.6}
    config = supervised.Config(pack=little_pack.path, out=tmp_path / "start", **options)
    supervised.run(config)
    assert any(Noisy.modes)
    Noisy.modes.clear()
    Noisy.seen.clear()
    return config


def labelled(*views: Tensor) -> Batch:
    rows = torch.arange(len(views[0]))
    return Batch(views, rows % 3, rows, rows >= 0)


def paired(num_views: int) -> PairedBatch:
    """Return six labelled images with `num_views` views each, and six unlabelled ones with two views."""
    views = torch.randn(2, 6, 3, 16, 16)
    many = Batch(tuple(views), None, torch.arange(6), torch.ones(6, dtype=torch.bool))
    return PairedBatch(labelled(*views[:num_views]), many)


def supervised_case(**options: Any) -> tuple[Recipe, Any]:
    config = supervised.Config(**options, ema_decay=0.9)
    return supervised.Supervised(config, "abc"), labelled(torch.randn(6, 3, 16, 16))


def mean_teacher_case(**options: Any) -> tuple[Recipe, Any]:
    return mean_teacher.MeanTeacher(mean_teacher.Config(**options), "abc"), paired(2)


def fixmatch_case(**options: Any) -> tuple[Recipe, Any]:
    return fixmatch.FixMatch(fixmatch.Config(**options, threshold=0.0), "abc"), paired(1)


def pseudo_label_case(**options: Any) -> tuple[Recipe, Any]:
    return pseudo_label.Classical(pseudo_label.Config(**options, threshold=0.0), "abc"), paired(1)


def temporal_ensembling_case(**options: Any) -> tuple[Recipe, Any]:
    config = temporal_ensembling.Config(**options)
    return temporal_ensembling.TemporalEnsembling(config, "abc", np.arange(6)), paired(1)


def transfer_case(tuning: FineTuning, frozen: bool) -> Callable[..., tuple[Recipe, Any]]:
    def case(**options: Any) -> tuple[Recipe, Any]:
        recipe = Transfer(Noisy(), "noisy", 3, tuning)
        recipe.begin_stage(tuning, frozen)
        return recipe, labelled(torch.randn(6, 3, 16, 16))

    return case


CASES: dict[str, Callable[..., tuple[Recipe, Any]]] = {
    "supervised": supervised_case,
    "mean_teacher": mean_teacher_case,
    "fixmatch": fixmatch_case,
    "pseudo_label": pseudo_label_case,
    "temporal_ensembling": temporal_ensembling_case,
    "transfer": transfer_case(TUNING, frozen=True),
    "transfer at rate 0": transfer_case(replace(TUNING, lr_backbone=0.0), frozen=False),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_buffers_are_the_same_before_and_after_steps(
    name: str, start: supervised.Config, tmp_path: Path
) -> None:
    seed_everything(0)
    options = FEW | {"pack": start.pack, "out": tmp_path / "run", "init": start.out, "freeze_backbone": True}
    recipe, batch = CASES[name](**options)
    recipe.make_schedule(2, 4)
    optimizer = recipe.make_optimizer()
    networks = [module for module in recipe.modules() if isinstance(module, Noisy)]
    assert len(networks) == (2 if name in ("supervised", "mean_teacher", "fixmatch") else 1)
    x = torch.randn(5, 3, 16, 16)
    nn.ModuleList([recipe]).train()
    before = [(network(x), [b.clone() for b in network.buffers()]) for network in networks]
    trained = [p for p in recipe.parameters() if p.requires_grad]
    heads = [p.clone() for p in trained]
    for step in range(3):
        nn.ModuleList([recipe]).train()  # the loop sets the mode through a wrapping module too
        optimizer.zero_grad()
        recipe.training_step(batch, step).loss.backward()
        optimizer.step()
        with torch.no_grad():
            recipe.after_step(step)
    for network, (h, buffers) in zip(networks, before, strict=True):
        assert torch.equal(network(x), h)
        assert all(torch.equal(a, b) for a, b in zip(network.buffers(), buffers, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(trained, heads, strict=True)), "the classifier learns"


def test_in_a_run_nothing_is_in_training_mode(start: supervised.Config, tmp_path: Path) -> None:
    tuned = supervised.run(replace(start, out=tmp_path / "tuned", init=start.out, freeze_backbone=True))
    assert Noisy.modes
    assert not any(Noisy.modes)
    before, after = (load_classifier(out, "raw") for out in (start.out, tuned.out))
    for key, tensor in before.backbone.state_dict().items():
        assert torch.equal(tensor, after.backbone.state_dict()[key]), key
    assert not torch.equal(before.head.weight, after.head.weight)


ROUNDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "self_training": (self_training, {"per_class": (3, 5), "first_epochs": 1, "true_epochs": 1}),
    "permanent": (pseudo_label, {"mode": "permanent", "cycles": 2, "first_epochs": 1, "threshold": 0.0}),
    "local": (pseudo_label, {"mode": "local", "cycles": 2, "first_epochs": 1, "threshold": 0.0}),
}


@pytest.mark.parametrize("stored_views", [0, 2])
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_show_an_image_to_a_frozen_backbone_once(
    name: str, stored_views: int, start: supervised.Config, little_pack: Pack, tmp_path: Path
) -> None:
    recipe, options = ROUNDS[name]
    kept = {"init": start.out, "freeze_backbone": True, "stored_views": stored_views, "epochs": 1}
    kept |= {"trackers": ("tensorboard",)}  # this tracker shows views, if there are any
    config = recipe.Config(pack=start.pack, out=tmp_path / "run", **(FEW | options | kept))
    left = recipe.run(config) if name == "self_training" else recipe.run_cycles(config, little_pack)
    pool, measured = (len(little_pack.split(split)) for split in ("unlabeled", "test"))
    few = FEW["labels_per_class"] * 10
    # Padded to whole batches, of at most 256 images.
    padded = [-(-n // min(n, 256)) * min(n, 256) for n in (pool, measured, pool + few)]
    once = padded[0] + padded[1] + stored_views * padded[2]
    seen = sum(Noisy.seen)
    assert seen == once if stored_views else seen > once
    assert all(phase.accuracy.num_images == measured for phase in left)
    before, after = (load_classifier(out, "raw") for out in (start.out, config.out))
    assert torch.equal(before.backbone.layers[0].weight, after.backbone.layers[0].weight)
    if name == "local" and stored_views:  # a resumed command finds the features
        (config.out / "classifier.safetensors").unlink()
        Noisy.seen.clear()
        recipe.run_cycles(replace(config, resume=True), little_pack)
        assert sum(Noisy.seen) == 0


def test_features_are_kept_of_a_frozen_backbone_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stored_views: expected --freeze-backbone"):
        self_training.Config(pack=tmp_path, out=tmp_path, stored_views=2)
    frozen = {"init": tmp_path, "freeze_backbone": True, "stored_views": 2}
    for name, value in (("start_resolution", 8), ("flips", "in_turns"), ("classifier_start", "probe")):
        with pytest.raises(UserError, match=f"{name}: expected the default with --stored-views"):
            self_training.Config(pack=tmp_path, out=tmp_path, **frozen, **{name: value})
    with pytest.raises(UserError, match="expected --mode permanent or local"):
        pseudo_label.Config(pack=tmp_path, out=tmp_path, **frozen)


def test_the_online_probe_measures_a_network_at_rest(tmp_path: Path) -> None:
    network = Noisy().train()
    buffers = [buffer.clone() for buffer in network.buffers()]
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(), every_epochs=1)
    Noisy.modes.clear()
    first, second = (probe.measure(network, torch.device("cpu"), tmp_path) for _ in range(2))
    assert not any(Noisy.modes)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), buffers, strict=True))
    assert all(module.training for module in network.modules())
