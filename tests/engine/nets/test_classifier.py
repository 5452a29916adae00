"""Classifiers on disk: the names of their classes, the view they are measured with, other resolutions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.nets.backbones import build_backbone, resized
from engine.nets.classifier import (
    Classifier,
    build_classifier,
    find_classifier,
    has_classifier,
    load_classifier,
    save_classifier,
)
from engine.nets.description import METADATA_KEY, read_description
from engine.nets.weights import write_tensors
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError
from loaders.views.evaluation import EvaluationView

VIEW = EvaluationView(16, 0.9, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
KNOWN = ("ant", "bee", "cat")


@pytest.fixture
def saved(tmp_path: Path) -> Classifier:
    """A classifier with the classes `KNOWN`, saved in `tmp_path`."""
    seed_everything(1)
    network = Classifier(build_backbone("tiny_resnet", 16), "tiny_resnet", VIEW, KNOWN).eval()
    save_classifier(tmp_path, network, "raw")
    return network


def forget_names(run: Path, network: Classifier) -> None:
    """Write the file in the older form that does not name classes and view."""
    described = {"backbone": "tiny_resnet", "resolution": "16", "num_classes": "3"}
    metadata = {METADATA_KEY: json.dumps(described)}
    write_tensors(run / "classifier.safetensors", network.state_dict(), metadata)


def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def by_name(network: Classifier) -> dict[str, Tensor]:
    """Return the probabilities of the images for each class name."""
    return dict(zip(network.classes, network(images()).softmax(1).T, strict=True))


def test_names_and_view_come_back(saved: Classifier, tmp_path: Path) -> None:
    found = load_classifier(tmp_path, "raw")
    assert (found.classes, found.view, found.resolution, found.num_classes) == (KNOWN, VIEW, 16, 3)
    torch.testing.assert_close(found(images()), saved(images()))


def test_a_file_of_a_classifier_is_seen_as_one(saved: Classifier, tmp_path: Path) -> None:
    file, backbone = tmp_path / "classifier.safetensors", tmp_path / "backbone.safetensors"
    save_backbone(tmp_path, saved.backbone, {"backbone": saved.backbone_name, "resolution": 32})
    assert has_classifier(tmp_path)
    assert has_classifier(file)
    assert not has_classifier(backbone)
    assert not has_classifier(Path("timm:resnet18"))


@pytest.mark.parametrize("classes", [KNOWN, ("cat", "ant", "bee"), ("bee", "ant", "cat")])
def test_classes_in_another_order_are_matched_by_name(
    saved: Classifier, tmp_path: Path, classes: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_classifier(tmp_path, classes, every_class=True)
    assert found.classes == classes
    expected = by_name(saved)
    for name, probabilities in by_name(found).items():
        torch.testing.assert_close(probabilities, expected[name], msg=name)
    kept = build_classifier("tiny_resnet", VIEW, classes, tmp_path, keep_head=True)
    assert torch.equal(kept.head.weight, saved.head.weight[[KNOWN.index(name) for name in classes]])
    assert capsys.readouterr().err == ""


def test_a_pack_of_some_of_the_classes_is_answered_with_these(
    saved: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, whole = by_name(find_classifier(tmp_path, ("cat", "ant"), every_class=True)), by_name(saved)
    assert "the pack lacks 'bee'" in capsys.readouterr().err
    torch.testing.assert_close(found["cat"], whole["cat"] / (whole["cat"] + whole["ant"]))
    kept = build_classifier("tiny_resnet", VIEW, ("cat", "ant"), tmp_path, keep_head=True)
    assert torch.equal(kept.head.bias, saved.head.bias[[2, 0]])


def test_a_class_that_the_classifier_does_not_know_is_never_answered(
    saved: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This happens after images of new classes were appended to a pack; the new classes come last."""
    more = (*KNOWN, "dog")
    found, whole = by_name(find_classifier(tmp_path, more)), by_name(saved)
    assert "does not know 'dog'" in capsys.readouterr().err
    assert not found["dog"].any()
    torch.testing.assert_close(found["bee"], whole["bee"])
    with pytest.raises(UserError, match=r"of all 4 in the pack, found one of 3 .*; train on labels"):
        find_classifier(tmp_path, more, every_class=True)
    seed_everything(3)
    kept = build_classifier("tiny_resnet", VIEW, more, tmp_path, keep_head=True)
    assert torch.equal(kept.head.weight[:3], saved.head.weight)
    assert kept.head.weight[3].any()
    assert torch.isfinite(kept.head.bias).all(), "the new class can be learned"


@pytest.mark.parametrize("classes", [("cow", "dog", "eel"), ("ant", "bee", "dog"), ("dog",), ()])
def test_other_classes_are_refused_in_one_line(
    saved: Classifier, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=r"classes: expected the 3 of .* in the pack.*; give the pack of"):
        find_classifier(tmp_path, classes)
    with pytest.raises(UserError, match=r"classes: expected the 3 of .* in the pack.*; leave out --keep"):
        build_classifier("tiny_resnet", VIEW, classes, tmp_path, keep_head=True)
    build_classifier("tiny_resnet", VIEW, classes or KNOWN, tmp_path)


def test_a_pack_without_classes_takes_the_classifiers(saved: Classifier, tmp_path: Path) -> None:
    assert find_classifier(tmp_path, None).classes == KNOWN
    forget_names(tmp_path, saved)
    with pytest.raises(UserError, match="does not name its classes; give a pack that names them"):
        find_classifier(tmp_path, None)


def test_a_file_from_before_names_were_kept_is_taken_in_the_packs_order(
    saved: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_names(tmp_path, saved)
    assert read_description(tmp_path / "classifier.safetensors").view == EvaluationView.usual(16)
    found = find_classifier(tmp_path, ("x", "y", "z"))
    assert "does not name its 3 classes; they are taken in the order of the pack" in capsys.readouterr().err
    assert found.classes == ("x", "y", "z")
    torch.testing.assert_close(found(images()), saved(images()))
    with pytest.raises(UserError, match=r"classes: expected 3, those of .*, found 2 in the pack"):
        find_classifier(tmp_path, ("x", "y"))


def test_a_backbone_is_no_classifier(saved: Classifier, tmp_path: Path) -> None:
    described = {METADATA_KEY: json.dumps({"backbone": "tiny_resnet", "resolution": "16"})}
    write_tensors(tmp_path / "classifier.safetensors", saved.backbone.state_dict(), described)
    with pytest.raises(UserError, match="holds no classifier; expected a file that a run with labels wrote"):
        load_classifier(tmp_path, "raw")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit_relpos", "tiny_resnet"])
def test_a_classifier_starts_saves_and_loads_at_another_resolution(name: str, tmp_path: Path) -> None:
    seed_everything(0)
    first = Classifier(build_backbone(name, 32), name, EvaluationView.usual(32), KNOWN)
    save_classifier(tmp_path, first, "raw")
    larger = EvaluationView.usual(48)
    second = build_classifier(name, larger, KNOWN, tmp_path, keep_head=True).eval()
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(second(x), first.at(48)(x))
    save_classifier(tmp_path, second, "raw")
    again = load_classifier(tmp_path, "raw")
    assert again.resolution == 48
    torch.testing.assert_close(again(x), second(x))
    back = resized(again.backbone, name, 32)
    assert back(torch.randn(2, 3, 32, 32)).shape == (2, first.head.in_features)
