"""AlexNet's shapes at 224 pixels and below."""

from __future__ import annotations

import pytest
import torch

from engine.nets.backbones import build_backbone
from loaders.common.errors import UserError


def test_maps_and_representation_at_224_pixels() -> None:
    network = build_backbone("alexnet_bn", 224).eval()
    x = torch.randn(1, 3, 224, 224)
    shapes = [list(network.layer(x, f"conv{i}").shape[1:]) for i in range(1, 6)]
    assert shapes == [[64, 55, 55], [192, 27, 27], [384, 13, 13], [256, 13, 13], [256, 13, 13]]
    last = network.pool(network.layer(x, "conv5"))
    torch.testing.assert_close(network(x), last.flatten(1))


def test_small_views() -> None:
    assert build_backbone("alexnet_bn", 63).eval()(torch.randn(2, 3, 63, 63)).shape == (2, 9216)
    with pytest.raises(UserError, match="at least 63 pixels, found 62"):
        build_backbone("alexnet_bn", 62)
    with pytest.raises(UserError, match="found 'conv6'"):
        build_backbone("alexnet_bn", 64).layer(torch.randn(1, 3, 64, 64), "conv6")
