"""A recipe with labels begins with weights of others: their view, their licence, and what they teach stay."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from engine.nets.classifier import load_classifier
from engine.nets.description import Origin, read_description
from loaders import LoaderOptions
from loaders.packs import Pack
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from recipes import supervised

VIEW = EvaluationView(32, 0.9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    shown = {"input_size": (3, 64, 64), "mean": VIEW.mean, "std": VIEW.std, "crop_pct": 0.9}
    timm.models.save_for_hf(
        timm.create_model("resnet18", num_classes=5),
        folder,
        {"pretrained_cfg": {"license": "cc-by-nc-4.0"}},
        data_config=shown | {"interpolation": "bicubic"},
        safe_serialization=True,
    )
    return folder


def test_what_comes_with_the_weights_stays_with_the_run(hub: Path, digits_pack: Pack, tmp_path: Path) -> None:
    config = supervised.Config(
        pack=digits_pack.path, out=tmp_path / "run", backbone="resnet18", resolution=32, init=hub,
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
    second = replace(config, out=tmp_path / "second", init=out)  # a run that begins with that run
    assert (second.evaluation_view, second.origin) == (VIEW, origin)


def test_views_of_other_values_keep_them() -> None:
    plain = presets.reconstruction(16)
    assert VIEW.fit((plain,)) == (plain,)
    usual = (presets.barlow_a(32),)
    assert EvaluationView.usual(32).fit(usual) == usual
