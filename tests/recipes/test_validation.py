"""Every recipe with labels is validated while it trains, and keeps its best weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from engine.train.checkpoint import list_checkpoints, load_best
from engine.train.classifier_recipe import read_accuracy
from engine.train.metrics import read_metrics
from engine.train.run import print_summary
from loaders import open_pack
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.validation import SET_ASIDE_PATH
from recipes import (
    fixmatch,
    mean_teacher,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    temporal_ensembling,
)
from tests.recipes.labelled import FEW, check_exact_runs

HELD: dict[str, Any] = {"labels_per_class": 4, "validation_share": 0.25, "validate_every": 1, "keep": "best"}
HELD |= {"epochs": 4}  # of one step each
PAIRED: dict[str, Any] = {"unlabeled_splits": ("train",), "mu": 2, "batch_size": 10}
ROUNDS: dict[str, Any] = {"lr": 0.01, "epochs": 1, "first_epochs": 1, "steps": 2}


def config_of(module: Any, pack: Pack, out: Path, **changes: Any) -> Any:
    return module.Config(pack=pack.path, out=out, **{**FEW, **HELD, **changes})


@pytest.fixture(scope="module")
def measured(digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of supervised training with an average, validated at each of its four steps."""
    out = tmp_path_factory.mktemp("measured") / "run"
    supervised.run(config_of(supervised, digits_pack, out, max_steps=4, ema_decay=0.5))
    return out


def test_training_and_validation_stand_side_by_side(measured: Path) -> None:
    records = read_metrics(measured / "metrics.jsonl")
    held = [record for record in records if "validation_top1" in record]
    assert [record["step"] for record in held] == [1, 2, 3, 4]
    assert all(record["validation_loss"] > 0.0 for record in held)
    assert all(0.0 <= record["validation_raw_top1"] <= 1.0 for record in held)
    trained = [record for record in records if "top1" in record]
    assert [record["step"] for record in trained] == [1, 2, 3, 4]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_summary_says_which_weights_are_used(
    keep: str, digits_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(supervised, digits_pack, tmp_path / "run", max_steps=2, keep=keep)
    print_summary("supervised", supervised.run(config))
    used = "its weights are used" if keep == "best" else "the last weights are used"
    said = capsys.readouterr().out
    assert re.search(rf"best validation [\d.]+% at step \d \({used}\), 2 of", said)
    assert f" test images of {digits_pack.path}, " in said


def test_labels_set_aside_are_left_as_a_table(measured: Path, digits_pack: Pack) -> None:
    table = LabelTable.read(measured / SET_ASIDE_PATH)
    assert np.bincount(table.label).tolist() == [1] * 10
    assert set(table.source) == {"true"}


def test_the_best_are_used_and_measured_and_the_last_lie_beside_them(measured: Path) -> None:
    checkpoint = list_checkpoints(measured / "checkpoints")[-1]
    best, last = load_best(checkpoint), safetensors.torch.load_file(checkpoint / "model.safetensors")
    state = json.loads((checkpoint / "meta.json").read_text())["validation"]
    records = read_metrics(measured / "metrics.jsonl")
    held = {r["step"]: r["validation_top1"] for r in records if "validation_top1" in r}
    assert held[state["best_step"]] == state["best_top1"] == max(held.values())
    for part, file in (("classifier", "classifier"), ("average", "classifier-ema")):
        for folder, weights in ((measured, best), (measured / "last", last)):
            found = safetensors.torch.load_file(folder / f"{file}.safetensors")
            assert found.keys() == {n.removeprefix(f"{part}.") for n in weights if n.startswith(f"{part}.")}
            assert all(torch.equal(found[name], weights[f"{part}.{name}"]) for name in found)


def test_accuracies_name_the_classes(measured: Path, digits_pack: Pack) -> None:
    found = read_accuracy(measured)["ema"]
    assert found.per_class is not None
    assert list(found.per_class) == list(digits_pack.classes)
    assert found.worst_class_top1 == min(found.per_class.values()) == found.per_class[str(found.worst_class)]
    assert found.mean_class_top1 == pytest.approx(sum(found.per_class.values()) / 10)
    assert found.num_images == 445


def test_a_run_that_was_broken_off_keeps_the_same_best(digits_pack: Pack, tmp_path: Path) -> None:
    config = config_of(supervised, digits_pack, tmp_path / "whole", validate_every=2, ema_decay=0.5)
    check_exact_runs(config, supervised.run, tmp_path, steps=4)


OTHERS: dict[str, tuple[Any, Callable[[Any], Any], dict[str, Any]]] = {
    "fixmatch": (fixmatch, fixmatch.run, {**PAIRED, "class_weights": "inverse"}),
    "mean_teacher": (mean_teacher, mean_teacher.run, {**PAIRED, "class_weights": "effective"}),
    "temporal_ensembling": (
        temporal_ensembling,
        temporal_ensembling.run,
        {**PAIRED, "class_weights": "inverse"},
    ),
    "classical": (
        pseudo_label,
        lambda config: pseudo_label.run_classical(config, open_pack(config.pack)),
        {**PAIRED, "balanced": True},
    ),
    "ssl_gan": (
        ssl_gan,
        ssl_gan.run,
        {**PAIRED, "backbone": "gan_discriminator_8", "generator_width": 4, "balanced": True},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_recipe_is_measured(name: str, digits_pack: Pack, tmp_path: Path) -> None:
    module, run, changes = OTHERS[name]
    config = config_of(module, digits_pack, tmp_path / "run", max_steps=2, test_split="", **changes)
    run(config)
    records = read_metrics(config.out / "metrics.jsonl")
    assert [record["step"] for record in records if "validation_top1" in record] == [1, 2]
    assert all(0.0 <= record["top1"] <= 1.0 for record in records if "loss" in record)
    assert len(LabelTable.read(config.out / SET_ASIDE_PATH)) == 10
    meta = json.loads((list_checkpoints(config.out / "checkpoints")[-1] / "meta.json").read_text())
    assert "1342 of train" in meta["data"]["rows"]  # validation images are not used as unlabelled ones either


@pytest.mark.parametrize("name", ["self_training", "permanent"])
def test_phases_share_their_validation_images(
    name: str, digits_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {**ROUNDS, "unlabeled_splits": ("train",), "batch_size": 30}
    if name == "self_training":
        module, run = self_training, self_training.run
        changes |= {"per_class": (3,), "true_epochs": 1}
    else:
        module, run = pseudo_label, lambda config: pseudo_label.run_cycles(config, open_pack(config.pack))
        changes |= {"mode": "permanent", "cycles": 1, "threshold": 0.0}
    config = config_of(module, digits_pack, tmp_path / "run", **changes)
    run(config)
    held = LabelTable.read(config.out / SET_ASIDE_PATH)
    phases = sorted(path.parent for path in config.out.glob("*/metrics.jsonl"))
    assert len(phases) >= 2
    for phase in phases:
        steps = [r["step"] for r in read_metrics(phase / "metrics.jsonl") if "validation_top1" in r]
        assert steps == [1, 2]
        assert (phase / "last" / "classifier.safetensors").is_file()
    (guessed,) = (config.out / "labels").glob("[rc]*-1.parquet")
    assert not set(LabelTable.read(guessed).row.tolist()) & set(held.row.tolist())
    assert (
        "validation: 10 labels set aside (each is 10 points), 0.25 of each class" in capsys.readouterr().err
    )


def test_the_first_line_says_what_is_measured_on(
    digits_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: Path
) -> None:
    default = {"validation_share": None, "validate_every": None, "keep": "last"}
    config = config_of(supervised, digits_pack, tmp_path / "few", max_steps=1, test_split="", **default)
    supervised.run(config)
    expected = "validation: none, since a class has fewer than 20 labels (4 of '0')"
    assert capsys.readouterr().err.splitlines()[0] == expected
    assert not (config.out / SET_ASIDE_PATH).exists()
    supervised.run(replace(config, out=tmp_path / "on", init=measured))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"validation: the 10 images that {measured / SET_ASIDE_PATH} set aside"
    assert len(LabelTable.read(tmp_path / "on" / SET_ASIDE_PATH)) == 10
    assert not any("will be too high" in line for line in said)


def test_images_that_a_start_was_trained_on_are_no_validation_images(
    digits_pack: Pack, tmp_path: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"init": measured, "max_steps": 1, "test_split": "", "validation_share": 0.5}
    with pytest.raises(UserError, match="that no run behind --init was trained on, found labels of"):
        supervised.run(config_of(supervised, digits_pack, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()
    supervised.run(config_of(supervised, digits_pack, tmp_path / "run", allow_leak=True, **options))
    leaks = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["leaks"]
    assert any("validation images" in leak for leak in leaks)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validation_share": 0.0}, "which choose by images outside the test split"),
        ({"validation_share": 0.0, "keep": "last", "patience": 2}, "expected --validation-split or"),
        ({"validation_split": "test"}, "expected --validation-split or --validation-share, found both"),
        ({"validation_share": 1.5}, "validation_share: expected a share below 1, found 1.5"),
        ({"validate_every": 0}, "validate_every: expected more than 0"),
        ({"balanced": True, "class_weights": "inverse"}, "class_weights: expected none with --balanced"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    changes: dict[str, Any], expected: str, digits_pack: Pack, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        config_of(supervised, digits_pack, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validation_share": None}, "which choose by images outside the test split"),
        ({"validation_share": 0.9}, "expected to leave a label of each class to train on, found 4 of '0'"),
        ({"validation_share": None, "validation_split": "test"}, "a split other than --test-split"),
        ({"validation_share": None, "validation_split": "train"}, "no image of split 'train', which is"),
    ],
)
def test_what_the_labels_do_not_allow_leaves_nothing(
    changes: dict[str, Any], expected: str, digits_pack: Pack, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        supervised.run(config_of(supervised, digits_pack, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
