"""Balanced self-training on the digits: rounds, tables, duplicate counts, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import recipes.self_training as recipe
from engine.classifier_recipe import read_accuracy
from loaders.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from recipes.self_training import Config, run
from tests.recipes.labelled import FEW


@pytest.fixture
def config(digits_pack: Pack, tmp_path: Path) -> Config:
    few = FEW | {"lr": 0.05, "labels_per_class": 10, "batch_size": 50, "epochs": 2}
    return Config(
        pack=digits_pack.path,
        out=tmp_path / "run",
        top_k=3,
        per_class=(40, 120),
        first_epochs=30,
        true_epochs=15,
        min_crop=0.6,
        **few,
    )


def test_rounds_of_pseudo_labels_help(config: Config, digits_pack: Pack) -> None:
    done = run(config)
    names = ["start", "round-1-pseudo", "round-1-true", "round-2-pseudo", "round-2-true"]
    assert [phase.name for phase in done] == names
    start, last = done[0].accuracy, done[-1].accuracy
    assert start is not None
    assert last is not None
    assert last.top1 > max(0.85, start.top1)
    assert read_accuracy(config.out)["raw"] == last
    for cycle, per_class in ((1, 40), (2, 120)):
        table = LabelTable.read(config.out / "labels" / f"round-{cycle}.parquet")
        assert np.bincount(table.label, minlength=10).max() <= per_class
        assert len(table) > 0.9 * 10 * per_class
        assert set(table.cycle.tolist()) == {cycle}
        true = digits_pack.labels.dense(len(digits_pack))[table.row]
        assert (table.label == true).mean() > 0.8
        counts = json.loads((config.out / "labels" / f"round-{cycle}-duplicates.json").read_text())
        shares = [entry["share"] for entry in counts["counts"]]
        assert shares[0] == 0.0
        assert shares[-1] > 0.0
        assert (config.out / "labels" / f"round-{cycle}-duplicates.png").stat().st_size > 1000


def test_an_interrupted_command_goes_on_to_the_same_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, per_class=(20,), first_epochs=3, epochs=1, true_epochs=2)
    run(config)
    broken = replace(config, out=tmp_path / "broken")
    with monkeypatch.context() as patched:
        build, calls = recipe.build_labeled_loader, []

        def failing(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return build(*args, **options)

        patched.setattr(recipe, "build_labeled_loader", failing)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    run(replace(broken, resume=True))
    for name in ("classifier.safetensors", "accuracy.json", "labels/round-1.parquet"):
        assert (broken.out / name).read_bytes() == (config.out / name).read_bytes(), name


def test_begins_with_a_run_that_has_a_classifier(config: Config, tmp_path: Path) -> None:
    small = replace(config, per_class=(20,), first_epochs=3, epochs=1, true_epochs=2)
    run(small)
    done = run(replace(small, out=tmp_path / "more", init=small.out))
    assert [phase.name for phase in done] == ["round-1-pseudo", "round-1-true"]


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="per_class"):
        replace(config, per_class=(5, 0))
    with pytest.raises(UserError, match="no split 'odd'"):
        run(replace(config, unlabeled_splits=("odd",)))
    assert open_pack(config.pack)
