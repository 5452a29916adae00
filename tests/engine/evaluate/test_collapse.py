"""Collapsed representations are recognised by two figures, which stay far off for untrained networks."""

from __future__ import annotations

import pytest
import torch

from engine.evaluate.collapse import LEAST_RANK, LEAST_STD, describe_collapse, effective_rank, feature_std
from engine.nets.backbones import build_backbone
from engine.train.distributed import seed_everything


def test_the_spread_is_one_for_even_directions_and_nothing_for_one() -> None:
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(2000, 64, generator=generator)) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.ones(10, 64)) == pytest.approx(0.0, abs=1e-6)
    assert feature_std(torch.arange(1.0, 11.0).view(-1, 1) * torch.ones(1, 64)) == pytest.approx(
        0.0, abs=1e-6
    )


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_effective_rank_counts_directions(rank: int) -> None:
    h = torch.eye(8)[torch.arange(40) % rank]
    assert effective_rank(h) == pytest.approx(rank, rel=1e-3)


def test_the_effective_rank_is_that_of_all_classes() -> None:
    h = torch.eye(4).repeat_interleave(5_000, 0)  # sorted by class, as rows are in a pack
    assert effective_rank(h) == pytest.approx(4, rel=1e-3)


def test_the_effective_rank_weighs_directions_by_their_singular_value() -> None:
    h = torch.diag(torch.tensor([3.0, 1.0]))
    p = torch.tensor([0.75, 0.25])
    assert effective_rank(h) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)
    assert effective_rank(torch.zeros(4, 3)) == 0.0


def test_untrained_networks_have_not_collapsed_and_constant_ones_have() -> None:
    seed_everything(0)
    network = build_backbone("tiny_resnet", 16).eval()
    with torch.no_grad():
        h = network(torch.rand(64, 3, 16, 16))
    std, rank = feature_std(h), effective_rank(h)
    assert std > 3 * LEAST_STD
    assert rank > 1.5 * LEAST_RANK
    assert describe_collapse(std, rank, 256) == ""
    same = h[:1] + 1e-5 * h
    said = describe_collapse(feature_std(same), effective_rank(same), 256)
    assert said.startswith("warning: the features have collapsed, standard deviation ")
    assert "of 256" in said
