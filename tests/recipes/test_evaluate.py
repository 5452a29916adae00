"""Evaluation of a classifier on the digits: views, weights, predictions and reports."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.classifier import load_classifier
from engine.classifier_recipe import read_accuracy
from loaders import LoaderOptions, build_loader
from loaders.errors import UserError
from loaders.packs import Pack
from loaders.views import presets
from recipes.evaluate import Config, evaluate, predict_split


@pytest.fixture
def config(digits_pack: Pack, trained: Path, tmp_path: Path) -> Config:
    return Config(run=trained, pack=digits_pack.path, out=tmp_path / "out", num_threads=1)


def test_one_view_gives_the_accuracy_of_the_training(config: Config, trained: Path) -> None:
    measured = read_accuracy(trained)
    _, report = evaluate(config)
    assert report is not None
    assert report.top1 == pytest.approx(measured["ema"].top1)
    _, raw = evaluate(replace(config, weights="raw"))
    assert raw is not None
    assert raw.top1 == pytest.approx(measured["raw"].top1)


def test_views_are_averaged_and_listed(config: Config, digits_pack: Pack) -> None:
    evaluated, report = evaluate(replace(config, sizes=(16, 24), flips=True))
    assert evaluated.views == ("16", "16 flipped", "24", "24 flipped")
    torch.testing.assert_close(evaluated.probabilities, evaluated.by_view.mean(0))
    torch.testing.assert_close(evaluated.by_view.sum(2), torch.ones(4, 445))
    plain = predict_split(config, digits_pack)
    torch.testing.assert_close(evaluated.by_view[0], plain.by_view[0])
    assert not torch.allclose(evaluated.by_view[1], plain.by_view[0], atol=0.1)
    assert report is not None
    found = json.loads((config.out / "classification.json").read_text())
    assert found["mean_of_views"]["top1"] == pytest.approx(report.top1)
    assert found["views"]["16"]["top1"] == pytest.approx(evaluated.report(0).top1)
    assert set(found["per_class_top1"]) == set(digits_pack.classes)


def test_each_view_shows_what_it_says(config: Config, digits_pack: Pack, trained: Path) -> None:
    """Against pictures cut, resized and mirrored here."""
    network = load_classifier(trained, "ema")
    changed = replace(config, sizes=(16, 24), flips=True, crop=0.75, split="train")
    found = predict_split(changed, digits_pack)
    assert set(found.index.tolist()) == set(digits_pack.split("train").rows(np.arange(1352)).tolist())
    views = (presets.evaluation(16, 0.75), presets.evaluation(24, 0.75))
    with build_loader(
        digits_pack.split("train"), views, 256, options=LoaderOptions(num_threads=1), mode="eval"
    ) as loader:
        batch = next(iter(loader.epoch(0)))
    assert torch.equal(found.index[:256], batch.index)
    expected = [x for view in batch.views for x in (view, view.flip(3))]
    with torch.no_grad():
        for probabilities, x in zip(found.by_view, expected, strict=True):
            torch.testing.assert_close(probabilities[:256], network(x).softmax(1), rtol=1e-3, atol=1e-4)
    whole = predict_split(replace(changed, crop=1.0), digits_pack)
    for cut, uncut in zip(found.by_view, whole.by_view, strict=True):
        assert not torch.allclose(cut, uncut, atol=0.1)


def test_predictions_and_pictures_are_left(config: Config, digits_pack: Pack) -> None:
    evaluated, report = evaluate(config)
    assert report is not None
    with (config.out / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 445
    assert np.mean([line["label"] == line["guess"] for line in lines]) == pytest.approx(report.top1)
    assert all(digits_pack.key(int(line["row"])) == line["key"] for line in lines)
    true = digits_pack.labels.dense(len(digits_pack))
    assert all(digits_pack.classes[true[int(line["row"])]] == line["label"] for line in lines)
    arrays = np.load(config.out / "predictions.npz", allow_pickle=False)
    assert np.array_equal(arrays["probabilities"], evaluated.probabilities.numpy())
    with (config.out / "confusion.csv").open(newline="") as file:
        counts = {
            (line["class"], guess): int(line[guess])
            for line in csv.DictReader(file)
            for guess in line
            if guess != "class"
        }
    called = Counter((line["label"], line["guess"]) for line in lines)
    assert counts == {pair: called[pair] for pair in counts}
    assert sum(counts.values()) == 445
    for name in ("confusion", "confusion-dark", "calibration", "calibration-dark"):
        assert (config.out / f"{name}.png").stat().st_size > 1000


def test_mistakes(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="crop: expected more than 0"):
        replace(config, crop=0.0)
    with pytest.raises(UserError, match="classifier: expected one in"):
        evaluate(replace(config, run=tmp_path))
