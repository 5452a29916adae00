"""Features of any layer: the correct map, and no later layer is computed or trained."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from engine.nets.alexnet import AlexNet
from engine.nets.backbones import TinyResNet
from engine.nets.layers import Layer, LayerFeatures, measure_layer, read_layer
from loaders.common.errors import UserError


def test_conv4_of_alexnet_is_its_fourth_map() -> None:
    torch.manual_seed(0)
    network, x = AlexNet().eval(), torch.randn(2, 3, 64, 64)
    found = read_layer(network, x, Layer("conv4", side=3))
    expected = nn.functional.adaptive_avg_pool2d(network.layer(x, "conv4"), 3).flatten(1)
    assert found.shape == (2, 256 * 9)
    assert torch.equal(found, expected)
    num_features, behind = measure_layer(network, 64, Layer("conv4", side=3))
    assert num_features == 256 * 9
    assert [id(p) for p in behind] == [id(p) for p in network.conv5.parameters()]


def test_what_lies_behind_the_layer_does_not_run() -> None:
    network = TinyResNet()

    def fail(module: nn.Module, inputs: object) -> None:
        raise AssertionError("ran")

    network.stages[2].register_forward_pre_hook(fail)
    assert read_layer(network, torch.randn(2, 3, 16, 16), Layer("stages.1")).shape == (2, 64)
    assert network.stages[1](torch.randn(2, 32, 8, 8)).ndim == 4, "the hook is taken off again"


def test_no_name_is_the_representation() -> None:
    network, x = TinyResNet().eval(), torch.randn(2, 3, 16, 16)
    assert torch.equal(read_layer(network, x, Layer()), network(x))
    assert torch.equal(LayerFeatures(network, Layer())(x), network(x))


def test_measuring_leaves_modes_statistics_and_gradients_alone() -> None:
    network = TinyResNet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.stages[0].eval()
    measure_layer(network, 16, Layer("stages.2"))
    assert network.training
    assert not network.stages[0].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_tokens_of_a_transformer_are_averaged() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=2).eval()
    seen: list[torch.Tensor] = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = read_layer(network, torch.randn(2, 3, 32, 32), Layer("blocks.0"))
    torch.testing.assert_close(found, seen[0].mean(1))


def test_maps_of_channels_last_are_averaged_over_their_places() -> None:
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, num_classes=0, embed_dim=12, depths=(1, 1),
        num_heads=(1, 1), window_size=4,
    ).eval()  # fmt: skip
    seen: list[torch.Tensor] = []
    network.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = read_layer(network, torch.randn(2, 3, 32, 32), Layer("layers.1"))
    assert seen[0].shape == (2, 4, 4, 24)
    torch.testing.assert_close(found, seen[0].mean((1, 2)))
    assert measure_layer(network, 32, Layer("layers.1"))[0] == 24


def test_everything_lies_behind_a_layer_before_the_first_parameter() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    num_features, behind = measure_layer(network, 16, Layer("0"))
    assert num_features == 3
    assert len(behind) == 2


def test_mistakes_are_named() -> None:
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(UserError, match=r"expected one of conv1.*conv5.*, found 'conv6'"):
        read_layer(AlexNet(), x, Layer("conv6"))
    network = AlexNet()
    network.spare = nn.Linear(1, 1)
    with pytest.raises(UserError, match="one that the network runs, found 'spare'"):
        read_layer(network, x, Layer("spare"))
