"""The compact network: its sizes, and that it learns at the learning rates of other networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.nets.backbones import build_backbone, load_backbone
from engine.nets.compact import CompactBlock, CompactCnn
from engine.nets.names import check_mentioned
from engine.nets.starts import build_start
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError


def test_a_block_halves_the_side_and_a_side_of_one_pixel_stays() -> None:
    block = CompactBlock(4, 6).eval()
    assert block(torch.randn(2, 4, 9, 8)).shape == (2, 6, 4, 4)
    assert block(torch.randn(2, 4, 1, 1)).shape == (2, 6, 1, 1)


def test_a_block_begins_as_the_identity_and_its_scales_stay_at_one() -> None:
    block = CompactBlock(4, 6)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block.conv1(x)[:, :4], x)
    torch.testing.assert_close(block.conv2(y := torch.randn(2, 6, 4, 4)), y)
    assert block.conv1.weight[4:].std() > 0
    still = {name for name, p in block.named_parameters() if not p.requires_grad}
    assert still == {"norm1.weight", "norm2.weight"}
    assert {block.norm1.momentum, block.norm2.momentum} == {0.4}


@pytest.mark.parametrize("side", [12, 32, 47])
def test_views_of_any_side_become_one_representation(side: int) -> None:
    assert CompactCnn()(torch.randn(3, 3, side, side)).shape == (3, 256)


def test_weights_come_back_and_those_of_the_older_network_are_refused(tmp_path: Path) -> None:
    network = CompactCnn()
    save_backbone(tmp_path, network, {"backbone": "compact_cnn", "resolution": "32"})
    torch.testing.assert_close(load_backbone(tmp_path).state_dict(), network.state_dict())
    save_backbone(tmp_path, network, {"backbone": "compact_resnet", "resolution": "32"})
    for name in ("compact_cnn", "compact_resnet"):
        with pytest.raises(UserError, match="which was replaced by compact_cnn"):
            build_start(tmp_path, name, 32)
    with pytest.raises(UserError, match="which was replaced by compact_cnn"):
        load_backbone(tmp_path)
    with pytest.raises(UserError, match="which was replaced by compact_cnn"):
        check_mentioned("compact_resnet")


@pytest.mark.parametrize("name", ["compact_cnn", "tiny_resnet"])
def test_a_classifier_learns_at_the_rate_of_the_recipes(name: str) -> None:
    """If representations had a large norm, the first steps would change the logits too much: losses rise."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, 24, 24), torch.arange(16) % 4
    network = nn.Sequential(backbone := build_backbone(name, 24), nn.Linear(backbone.num_features, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 2 * losses[0]
    assert losses[-1] < losses[0] / 2
