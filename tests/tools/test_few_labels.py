"""Frozen features with few labels: computed once, with equal labels for all methods; more labels help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.evaluate.few_labels import FewLabelResult, read_results, write_results
from engine.nets.backbones import TinyResNet
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack
from tests.loaders.packs.inputs import class_tree, pack, write_tree
from tools import few_labels
from tools.few_labels import Config, classify, run


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    seed_everything(0)
    (tmp_path / "run").mkdir()
    save_backbone(tmp_path / "run", TinyResNet(), {"backbone": "tiny_resnet", "resolution": "16"})
    return Config(
        pack=digits_pack.path,
        init=tmp_path / "run" / "backbone.safetensors",
        out=tmp_path / "out",
        labels_per_class=(1, 16),
        seeds=(0, 1),
        methods=("knn", "probe"),
        loader=LoaderOptions(num_threads=1),
    )


def test_more_labels_help_and_features_are_computed_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run(config)
    assert len(results) == 8
    mean = {k: np.mean([r.top1 for r in results if r.labels_per_class == k]) for k in (1, 16)}
    assert mean[16] > mean[1] + 0.1
    assert read_results(config.out)[0] == results
    monkeypatch.setattr("engine.evaluate.feature_store._compute", None)  # features must not be computed again
    again = run(replace(config, labels_per_class=(4,), methods=("knn",)))
    assert [r.method for r in again] == ["knn", "knn"]


def test_pseudo_labels_use_the_images_without_a_label(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(200)
    points = torch.randn(400, 3, generator=generator)
    points[:, 2] += 6.0 * labels - 3.0  # one direction separates the classes
    h, query = points[:8], points[200:]
    shares = {}
    for method in ("probe", "pseudo"):
        scores = classify(config, method, h, labels[:8], points[8:200], query, 2)  # type: ignore[arg-type]
        shares[method] = float((scores.argmax(1) == labels[200:]).float().mean())
    assert shares["pseudo"] > shares["probe"] + 0.05


def test_a_split_without_labels_is_refused_before_any_work(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = class_tree(2, 4)
    labelled, bare = write_tree(tmp_path / "labelled", images), tmp_path / "bare"
    write_tree(bare, {f"{number}.jpg": data for number, data in enumerate(images.values())})
    made = pack(tmp_path / "pack", f"train={labelled}", f"test={bare}")
    monkeypatch.setattr(few_labels, "features", lambda *given: pytest.fail("features were computed"))
    for splits in ({}, {"train_split": "test", "test_split": "train"}):
        with pytest.raises(UserError, match=r"^(test|train)_split: expected labels in 'test', found none"):
            run(replace(config, pack=made.path, allow_leak=True, **splits))


def test_results_of_trainings_are_not_written_over(config: Config) -> None:
    path = write_results(config.out, [FewLabelResult("a", 1, 0, 0.5, 10, 3)], {"method": "knn"})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"^out: expected no results of trainings in .*; give another --out"):
        run(config)
    assert path.read_bytes() == before


def test_mistakes_are_named(config: Config) -> None:
    with pytest.raises(UserError, match="different values"):
        replace(config, seeds=(1, 1))
    with pytest.raises(UserError, match="at most 1"):
        replace(config, share=2.0)
