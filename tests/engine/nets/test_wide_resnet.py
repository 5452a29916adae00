"""WRN-28-2: its published size, its shapes, and that it trains."""

import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.nets.wide_resnet import WideResNet


def test_has_the_published_size_and_shapes():
    network = build_backbone("wrn_28_2", 32)
    head = 128 * 10 + 10
    parameters = sum(p.numel() for p in network.parameters()) + head
    assert parameters == pytest.approx(1.47e6, rel=0.005)  # 1.5 million in the papers
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 25
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert network.stages(network.stem(torch.randn(2, 3, 32, 32))).shape == (2, 128, 8, 8)


def test_every_weight_gets_a_gradient():
    network = WideResNet(10, 1)
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="depth 6 n"):
        WideResNet(27, 2)
