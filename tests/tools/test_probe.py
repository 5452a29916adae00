"""Probes of a run's frozen features equal scikit-learn's on the same features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.evaluate.results import read_evaluation
from engine.nets.backbones import load_backbone
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack, open_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views.evaluation import EvaluationView
from tests.floors.table import check
from tests.floors.trainings import untrained_run
from tests.next_line import read_next_line
from tools.frozen import say_next_of_start
from tools.probe import Config, evaluate, features_of


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    return Config(
        run=untrained_run(tmp_path / "run", 32, 3),
        pack=digits_pack.path,
        loader=LoaderOptions(num_threads=1),
    )


@pytest.mark.floor
def test_figures_are_kept_and_those_of_scikit_learn(config: Config) -> None:
    evaluation = evaluate(config)
    assert read_evaluation(config.run) is not None
    own, untrained = evaluation.rows
    assert (own.network, untrained.network) == ("barlow", "untrained")
    assert (own.num_train, own.num_test) == (1352, 445)
    assert own.linear_top1 != untrained.linear_top1
    pack = open_pack(config.pack)
    train, test = (
        features_of(config, pack, name, EvaluationView.usual(32), load_backbone(config.run), config.folder)
        for name in ("train", "test")
    )
    assert len(torch.unique(test.index)) == 445
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
    reference.fit(train.h.double().numpy(), train.labels.numpy())
    expected = reference.score(test.h.double().numpy(), test.labels.numpy())
    assert own.linear_top1 == pytest.approx(expected, abs=0.01)
    check("frozen_probe", {"linear_top1": own.linear_top1})
    assert own.linear_top1 <= own.linear_top5


def test_of_a_small_bank_all_are_neighbours(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    (own,) = evaluate(replace(config, labels_per_class=1, untrained=False)).rows
    assert "probe: 10 neighbours for barlow, all labelled images of split 'train'" in capsys.readouterr().err
    (ten,) = evaluate(replace(config, labels_per_class=1, untrained=False, neighbours=10)).rows
    assert own == ten
    assert capsys.readouterr().err.count("neighbours") == 0


def test_mistakes_are_named(config: Config, digits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'validation'"):
        evaluate(replace(config, test_split="validation"))
    flat = digits_folder / "train" / "3"
    pack_dataset(PackOptions(parse_splits((f"train={flat}",)), tmp_path / "flat", workers=1))
    with pytest.raises(UserError, match="train_split: expected labels in 'train', found none"):
        evaluate(replace(config, pack=tmp_path / "flat"))


def test_the_next_line_names_what_the_start_needed(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config.run / "backbone.safetensors"
    say_next_of_start(config, file, "train", "test")
    assert "--backbone" not in capsys.readouterr().out
    needed = replace(config, backbone="tiny_resnet", resolution=48)
    say_next_of_start(needed, file, "train", "validation")
    script, found = read_next_line(capsys.readouterr().out)
    assert script == "recipes/transfer.py"
    assert (found.init, found.backbone, found.resolution) == (file, "tiny_resnet", 48)
    assert (found.train_split, found.test_split) == ("train", "validation")
