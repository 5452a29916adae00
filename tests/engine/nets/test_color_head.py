"""The last feature map of every kind of network, and the colour head on top of it."""

from __future__ import annotations

import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.nets.color_head import MapHead, last_map
from loaders.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "resolution", "side"),
    [
        ("tiny_resnet", 32, 2),
        ("wrn_28_2", 32, 8),
        ("alexnet_bn", 64, 1),
        ("gan_discriminator_8", 32, 6),
        ("resnet18", 64, 2),
    ],
)
def test_a_map_becomes_logits_at_a_quarter_of_the_side(name: str, resolution: int, side: int) -> None:
    backbone = build_backbone(name, resolution)
    head = MapHead(backbone, resolution, resolution // 4, 4, 5)
    assert backbone.training
    x = torch.randn(2, 3, resolution, resolution)
    maps = last_map(backbone, x)
    assert maps.shape[2:] == (side, side)
    assert head(maps).shape == (2, 5, resolution // 4, resolution // 4)
    assert all(p.requires_grad for p in backbone.parameters())


def test_the_representation_is_made_of_the_map() -> None:
    backbone = build_backbone("tiny_resnet", 32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), last_map(backbone, x).mean((2, 3)))


def test_layers_behind_the_map_are_frozen() -> None:
    backbone = build_backbone("mobilenetv3_small_050", 32)
    MapHead(backbone, 32, 8, 4, 5)
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_head"}


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(UserError, match=r"backbone: expected one with maps \[B, C, H, W\], found \[1, 5, "):
        MapHead(build_backbone("vit_tiny_patch16_224", 32), 32, 8, 4, 5)
