"""Evaluation of a classifier on the digits: views, weights, predictions and reports."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.nets.classifier import Classifier, load_classifier, save_classifier
from engine.nets.description import read_description
from engine.report.other_pages import build_page
from engine.report.run_page import PageOptions
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import seed_everything
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.packs.labels.class_names import write_class_names
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from loaders.views.geometry import CenterCrop
from recipes import supervised
from recipes.evaluate import Config, evaluate, make_views, predict_split
from tests.recipes.labelled import FEW


@pytest.fixture
def config(digits_pack: Pack, trained: Path, tmp_path: Path) -> Config:
    return Config(
        run=trained, pack=digits_pack.path, out=tmp_path / "out", loader=LoaderOptions(num_threads=1)
    )


@pytest.mark.usefixtures("blank_drawings")
def test_one_view_gives_the_accuracy_of_the_training(config: Config, trained: Path) -> None:
    measured = read_accuracy(trained)
    _, report = evaluate(config)
    assert report is not None
    assert report.top1 == pytest.approx(measured["ema"].top1)
    _, raw = evaluate(replace(config, weights="raw"))
    assert raw is not None
    assert raw.top1 == pytest.approx(measured["raw"].top1)


@pytest.mark.usefixtures("blank_drawings")
def test_from_128_pixels_on_too(config: Config, few_digits: Path, tmp_path: Path) -> None:
    """From 128 pixels on, the run measures a crop of 0.875, and evaluation must show the same crop."""
    few = FEW | {"resolution": 128, "batch_size": 8, "max_steps": 1, "test_split": "train"}
    few |= {"allow_leak": True, "labels_per_class": 1, "backbone": "test_resnet"}
    for source in (few_digits.parent / "images").rglob("*.jpg"):
        if len(list((tmp_path / "images" / source.parent.name).glob("*"))) < 1:
            (tmp_path / "images" / source.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / "images" / source.parent.name)
    pack_dataset(PackOptions(parse_splits([f"train={tmp_path / 'images'}"]), tmp_path / "pack", workers=1))
    pack = open_pack(tmp_path / "pack")
    run = supervised.run(supervised.Config(pack=pack.path, out=tmp_path / "run", **few))
    found = read_description(run.out / "classifier.safetensors")
    assert found.view == EvaluationView.usual(128)
    assert found.view.crop == 0.875
    assert found.classes == pack.classes
    assert read_description(run.out / "backbone.safetensors").view == found.view
    views = make_views(replace(config, sizes=(128, 96), flips=True), found.view)
    assert [view.geometry for view in views.values()] == [CenterCrop(0.875)] * 4
    asked = replace(config, run=run.out, pack=pack.path, split="train", allow_leak=True)
    evaluated, report = evaluate(asked)
    assert report is not None
    assert run.accuracy is not None
    assert report.top1 == pytest.approx(run.accuracy.top1)
    expected = predict_split(replace(asked, crop=0.875), pack)
    torch.testing.assert_close(evaluated.by_view, expected.by_view)


def turned(trained: Path, out: Path) -> Path:
    """Save the same classifier with its classes in reverse order."""
    network = load_classifier(trained, "ema")
    other = Classifier(network.backbone, network.backbone_name, network.view, network.classes[::-1])
    with torch.no_grad():
        other.head.weight.copy_(network.head.weight.flip(0))
        other.head.bias.copy_(network.head.bias.flip(0))
    out.mkdir()
    save_classifier(out, other, "raw")
    return out


@pytest.mark.usefixtures("blank_drawings")
def test_classes_in_another_order_are_matched_by_name(config: Config, trained: Path, tmp_path: Path) -> None:
    _, report = evaluate(config)
    _, again = evaluate(replace(config, run=turned(trained, tmp_path / "turned")))
    assert report is not None
    assert again is not None
    assert again.top1 == report.top1 > 0.5
    assert (again.confusion == report.confusion).all()


@pytest.mark.usefixtures("blank_drawings")
def test_images_of_a_pack_without_classes_are_called_by_the_classifiers(
    config: Config, digits_folder: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for digit in "13":
        for number, source in enumerate(sorted((digits_folder / "test" / digit).glob("*.jpg"))[:6]):
            (flat / f"{digit}-{number}.jpg").write_bytes(source.read_bytes())
    pack_dataset(PackOptions(parse_splits([f"new={flat}"]), tmp_path / "pack", workers=1))
    _, report = evaluate(replace(config, pack=tmp_path / "pack", split="new"))
    assert report is None
    page = build_page(PageOptions(config.out))
    assert "without a label, 12 of the first 12" in page
    assert "<h2>Accuracy</h2>" not in page
    with (config.out / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert np.mean([line["key"].split("/")[-1][0] == line["guess"] for line in lines]) > 0.3


def test_a_transformer_is_measured_at_several_sizes(
    config: Config, digits_pack: Pack, tmp_path: Path
) -> None:
    name, run = "test_vit", tmp_path / "vit"
    seed_everything(0)
    network = Classifier(build_backbone(name, 32), name, EvaluationView.usual(32), digits_pack.classes)
    run.mkdir()
    save_classifier(run, network, "raw")
    asked = replace(config, run=run, sizes=(32, 48), flips=True)
    found = predict_split(asked, digits_pack)
    assert found.by_view.shape == (4, 445, 10)
    with build_loader(digits_pack.split("test"), (presets.evaluation(48),), 64, mode="eval") as loader:
        batch = next(iter(loader.epoch(0)))
    with torch.no_grad():
        expected = network.at(48)(batch.views[0]).softmax(1)
    torch.testing.assert_close(found.by_view[2, :64], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match=f"a resolution that {name} and its weights take, found 8"):
        evaluate(replace(asked, sizes=(32, 8)))
    assert not config.out.exists()


@pytest.mark.usefixtures("blank_drawings")
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
    """The views equal pictures that are cropped, resized and mirrored here."""
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


@pytest.mark.usefixtures("blank_drawings")
def test_its_page_shows_ranks_and_is_made_anew(config: Config, digits_pack: Pack) -> None:
    _, report = evaluate(replace(config, sizes=(16, 24)))
    assert report is not None
    text = build_page(PageOptions(config.out, classes=(digits_pack.classes[7],)))
    for heading in ("Accuracy", "Views", "Right and wrong by rank", "Precision at rank", "Imbalance"):
        assert f"<h2>{heading}</h2>" in text, heading
    assert f"accuracy on {report.num_images} test images" in text
    assert f"{digits_pack.classes[7]}: right" in text
    with (config.out / "precision_at_rank.csv").open(newline="") as file:
        lines = {line["class"]: line for line in csv.DictReader(file)}
    assert set(lines) == set(digits_pack.classes)
    assert float(lines[digits_pack.classes[0]]["at 10"]) > 0.5
    with pytest.raises(UserError, match=r"classes: expected some of .*, found 'x'"):
        evaluate(replace(config, classes=("x",)))
    (config.out / "predictions.npz").write_bytes(b"PK cut")
    with pytest.raises(UserError, match="is not an evaluation's result"):
        build_page(PageOptions(config.out))
    (config.out / "predictions.npz").unlink()
    with pytest.raises(UserError, match="evaluate again with --predictions"):
        build_page(PageOptions(config.out))


@pytest.mark.usefixtures("blank_drawings")
def test_its_page_is_of_the_pack_that_was_measured(
    config: Config, digits_pack: Pack, few_digits: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(digits_pack.path, tmp_path / "pack")
    evaluate(replace(config, pack=copied))
    write_class_names(copied, (*digits_pack.classes, "eleven"))
    assert "eleven" not in build_page(PageOptions(config.out))
    shutil.rmtree(copied)
    shutil.copytree(few_digits, copied)
    with pytest.raises(UserError, match=r"^pack: expected that of the evaluation, of .*, found one of "):
        build_page(PageOptions(config.out))
    path = config.out / "classification.json"
    older = json.loads(path.read_text())
    del older["pack"]
    path.write_text(json.dumps(older))
    build_page(PageOptions(config.out, pack=digits_pack.path))


@pytest.mark.usefixtures("blank_drawings")
def test_nothing_of_an_earlier_evaluation_stays(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, _ = evaluate(config)
    (config.out / "report.html").touch()
    evaluate(replace(config, predictions=False))
    assert not (config.out / "report.html").exists(), "a page of other figures"
    assert not list(config.out.glob("predictions.*"))
    assert (config.out / "confusion.csv").is_file()
    with pytest.raises(UserError, match="evaluate again with --predictions"):
        build_page(PageOptions(config.out))
    unlabelled = replace(evaluated, labels=torch.full_like(evaluated.labels, -1))
    monkeypatch.setattr("recipes.evaluate.predict_split", lambda config, pack: unlabelled)
    _, report = evaluate(config)
    assert report is None
    left = {path.name for path in config.out.iterdir()}
    assert left == {"classification.json", "predictions.csv", "predictions.npz"}


def test_mistakes(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^out: expected a folder without a run, .* found a run at"):
        replace(config, out=config.run)
    with pytest.raises(UserError, match="crop: expected more than 0"):
        replace(config, crop=0.0)
    with pytest.raises(UserError, match="classifier: expected one in"):
        evaluate(replace(config, run=tmp_path))
