"""Feature maps of each stage, for convolutional and transformer networks, and their sparseness."""

import pytest
import torch
from torch import nn

from engine.evaluate.feature_maps import StageMaps, stage_maps
from engine.nets.backbones import build_backbone
from loaders.common.errors import UserError


@pytest.mark.parametrize(
    ("name", "resolution", "last", "sides"),
    [
        ("tiny_resnet", 32, "stages.3", [16, 8, 4, 2]),
        ("compact_cnn", 32, "blocks.2", [15, 7, 3]),
        ("wrn_28_2", 16, "stages.11", [16, 8, 4]),
        ("alexnet_bn", 63, "conv5", [7, 3, 3, 3]),
        ("gan_discriminator_8", 16, "layers.20", [8, 4, 2]),
        ("resnet18", 64, "layer4", [16, 8, 4, 2]),
        ("vit_tiny_patch16_224", 32, "blocks.11", [2, 2, 2, 2]),
    ],
)
def test_the_maps_are_those_behind_each_stage(
    name: str, resolution: int, last: str, sides: list[int]
) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, resolution)
    views = torch.randn(2, 3, resolution, resolution)
    found = stage_maps(network, views)
    assert network.training, "its mode is restored"
    assert [stage.maps.shape[-1] for stage in found] == sides
    assert found[-1].stage == last
    assert all(len(stage.maps) == 2 and stage.maps.dtype == torch.float32 for stage in found)


def test_the_last_map_is_what_the_representation_is_made_of() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 3, 32, 32)
    for name in ("tiny_resnet", "resnet18"):
        network = build_backbone(name, 32).eval()
        expected = network(views)
        torch.testing.assert_close(stage_maps(network, views)[-1].maps.mean((2, 3)), expected)


def test_sparseness_is_hoyers() -> None:
    even, one = torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    one[0, 1, 2, 0] = -4.0
    half = torch.zeros(1, 1, 2, 2)
    half[0, 0, 0] = 1.0  # n = 4, |x|_1 = 2, |x|_2 = sqrt(2): 2 - sqrt(2)
    assert StageMaps("s", even).sparseness == pytest.approx(0.0, abs=1e-9)
    assert StageMaps("s", one).sparseness == pytest.approx(1.0)
    assert StageMaps("s", half).sparseness == pytest.approx(2 - 2**0.5)
    assert StageMaps("s", torch.cat([even, one])).sparseness == pytest.approx(0.5)
    assert 0 <= StageMaps("s", torch.zeros(1, 2, 3, 3)).sparseness <= 1, "a dead network"


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(UserError, match="expected a network that names its stages, found Linear"):
        stage_maps(nn.Linear(3, 3), torch.zeros(1, 3))
