"""Starting points of a network: runs, checkpoints and weights files of any recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.nets.backbones import TinyResNet
from engine.nets.classifier import Classifier, save_classifier
from engine.nets.starts import find_start, weights_digest
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError
from loaders.views.evaluation import EvaluationView
from tests.engine.synthetic import SmallRecipe, train_small

DESCRIBED = {"backbone": "tiny_resnet", "resolution": "16"}


def test_a_run_one_of_its_checkpoints_and_its_file_are_the_same_start(tmp_path: Path) -> None:
    recipe = SmallRecipe()
    config = {"backbone": "test_resnet", "resolution": 16}
    run = tmp_path / "run"
    train_small(run, recipe, config=config, backbone_metadata={"resolution": "16"})
    checkpoint = max((run / "checkpoints").iterdir())
    for path in (run, checkpoint, run / "backbone.safetensors"):
        start = find_start(path)
        assert (start.backbone, start.resolution) == ("test_resnet", 16)
        network = start.load()
        assert not network.training
        for name, expected in recipe.backbone.state_dict().items():
            assert torch.equal(network.state_dict()[name], expected), (path, name)
    assert not torch.equal(start.build().conv1[0].weight, recipe.backbone.conv1[0].weight)
    (run / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="is not finished"):
        find_start(run)


def test_a_run_with_labels_gives_its_averaged_network(tmp_path: Path) -> None:
    networks = {}
    for seed, weights in enumerate(("raw", "ema")):
        seed_everything(seed)
        networks[weights] = Classifier(TinyResNet(), "tiny_resnet", EvaluationView.usual(16), "abc")
        save_classifier(tmp_path, networks[weights], weights)  # type: ignore[arg-type]
    save_backbone(tmp_path, networks["raw"].backbone, DESCRIBED)
    found = find_start(tmp_path).load()
    assert torch.equal(found.stem[0].weight, networks["ema"].backbone.stem[0].weight)
    (tmp_path / "classifier-ema.safetensors").unlink()
    assert torch.equal(find_start(tmp_path).load().stem[0].weight, networks["raw"].backbone.stem[0].weight)


def test_other_weights_in_the_same_place_have_another_digest(tmp_path: Path) -> None:
    run, digests = tmp_path / "run", set()
    train_small(
        run, config={"backbone": "test_resnet", "resolution": 16}, backbone_metadata={"resolution": "16"}
    )
    file, checkpoint = run / "backbone.safetensors", max((run / "checkpoints").iterdir())
    digests |= {weights_digest(path) for path in (run, file, checkpoint)}
    assert weights_digest(run) == weights_digest(file)
    assert len(digests) == 2
    save_backbone(run, TinyResNet(), DESCRIBED)
    assert weights_digest(run) not in digests
    assert weights_digest(Path("timm:resnet18")) == ""


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run at"):
        find_start(tmp_path / "nowhere")
    train_small(tmp_path / "run", config={"backbone": "test_resnet", "resolution": 16})
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    (checkpoint / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="differs from its SHA-256"):
        find_start(checkpoint)
    save_backbone(tmp_path, TinyResNet(), {})
    with pytest.raises(UserError, match="does not name its backbone"):
        find_start(tmp_path / "backbone.safetensors")
