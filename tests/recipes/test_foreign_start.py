"""A recipe with labels starts from weights of others and keeps their view, licence and features."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from engine.nets.backbones import load_backbone
from engine.nets.classifier import load_classifier
from engine.nets.description import Origin, read_description
from engine.nets.starts import build_start, find_start
from engine.train.checkpoint import CheckpointMeta, save_checkpoint
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from recipes import supervised
from tests.recipes.short_runs import SMALL

VIEW = EvaluationView(32, 0.9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", True)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    shown = {"input_size": (3, 64, 64), "mean": VIEW.mean, "std": VIEW.std, "crop_pct": 0.9}
    timm.models.save_for_hf(
        timm.create_model("test_resnet", num_classes=5),
        folder,
        {"pretrained_cfg": {"license": "cc-by-nc-4.0"}},
        data_config=shown | {"interpolation": "bicubic"},
        safe_serialization=True,
    )
    return folder


def test_what_comes_with_the_weights_stays_with_the_run(hub: Path, little_pack: Pack, tmp_path: Path) -> None:
    config = supervised.Config(
        pack=little_pack.path, out=tmp_path / "run", backbone="test_resnet", resolution=32, init=hub,
        steps=1, batch_size=16, lr=0.0, freeze_backbone=True, trackers=(), progress=False, test_split="",
        loader=LoaderOptions(num_threads=1),
    )  # fmt: skip
    assert config.evaluation_view == VIEW
    (view,) = config.evaluation_view.fit((presets.crop_flip(32),))
    assert (view.normalize, view.interpolation) == (VIEW.policy().normalize, "bicubic")
    out = supervised.run(config).out
    origin = Origin(str(hub), "cc-by-nc-4.0")
    for name in ("classifier.safetensors", "backbone.safetensors"):
        described = read_description(out / name)
        assert (described.view, described.origin) == (VIEW, origin)
    written = json.loads((out / "config.json").read_text())["config"]
    assert written["origin"] == {"source": str(hub), "licence": "cc-by-nc-4.0"}
    kept = load_classifier(out, "raw").backbone.state_dict()
    given = timm.create_model(f"local-dir:{hub}", pretrained=True).state_dict()
    assert all(torch.equal(kept[key], given[key]) for key in kept)
    # Starting from that run, from its checkpoint or from a file of it gives the same result.
    checkpoint = max((out / "checkpoints").iterdir())
    for number, init in enumerate(
        (out, checkpoint, out / "backbone.safetensors", out / "classifier.safetensors")
    ):
        second = replace(config, out=tmp_path / f"second-{number}", init=init)
        assert (second.evaluation_view, second.origin) == (VIEW, origin)
        left = supervised.run(second).out / "classifier.safetensors"
        described = read_description(left)
        assert (described.view, described.origin) == (VIEW, origin)
        again = load_classifier(left.parent, "raw").backbone.state_dict()
        assert all(torch.equal(again[key], kept[key]) for key in kept)


def test_a_checkpoint_from_before_views_were_kept_is_refused_where_it_needs_one(tmp_path: Path) -> None:
    recipe = torch.nn.Linear(1, 1)
    config = {"backbone": "test_resnet", "resolution": 32, "origin": {"source": "w.pth", "licence": ""}}
    meta = CheckpointMeta("supervised", config, 1, 0, {}, 1)
    optimizer = torch.optim.SGD(recipe.parameters(), 0.1)
    saved = save_checkpoint(tmp_path, meta, recipe, optimizer, {"r": torch.zeros(1)}, 1)
    with pytest.raises(UserError, match="written before checkpoints kept it; finish the run"):
        find_start(saved)


BEGINNING: dict[str, dict[str, Any]] = {
    "barlow": {"projector": (16, 8)},
    "vicreg": SMALL["vicreg"],
    "simclr": SMALL["simclr"],
    "rotnet": {"hidden": (16,), "test_split": ""},
    "deepcluster": SMALL["deepcluster"],
}


@pytest.mark.parametrize("name", BEGINNING)
def test_pre_training_goes_on_from_weights_of_others(
    name: str, hub: Path, few_digits: Path, tmp_path: Path
) -> None:
    recipe = import_module(f"recipes.{name}")
    config = recipe.Config(
        pack=few_digits, split="train", out=tmp_path / "run", backbone="test_resnet", resolution=32, init=hub,
        steps=1, batch_size=16, trackers=(), progress=False, loader=LoaderOptions(num_threads=1),
        **BEGINNING[name],
    )  # fmt: skip
    assert config.evaluation_view == VIEW
    (view,) = PretrainingLoaders(config, (presets.simclr(32),)).views
    assert view.normalize == VIEW.policy().normalize
    recipe.run(config)
    described = read_description(config.out / "backbone.safetensors")
    assert (described.view, described.origin) == (VIEW, Origin(str(hub), "cc-by-nc-4.0"))
    kept = load_backbone(config.out).state_dict()["layer1.0.conv1.weight"].flatten()
    given = timm.create_model(f"local-dir:{hub}", pretrained=True).layer1[0].conv1.weight.flatten()
    assert torch.cosine_similarity(kept, given, dim=0) > 0.9  # about 0 for other random weights
    with pytest.raises(UserError, match="backbone: expected test_resnet, that of --init"):
        build_start(config.out, "resnet50", 32)


def test_views_of_other_values_keep_them() -> None:
    plain = presets.reconstruction(16)
    assert VIEW.fit((plain,)) == (plain,)
    usual = (presets.barlow_a(32),)
    assert EvaluationView.usual(32).fit(usual) == usual
