"""Moving averages: the value, the rule for buffers, and that a target is not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.ema import make_target, update_ema


@pytest.mark.parametrize(("buffers", "running_mean"), [("copy", 5.0), ("average", 0.9 * 1.0 + 0.1 * 5.0)])
def test_parameters_average_and_buffers_follow_the_named_rule(buffers: str, running_mean: float) -> None:
    source = nn.BatchNorm1d(2)
    source.running_mean.fill_(1.0)
    target = make_target(source)
    source.weight.data.fill_(3.0)
    source.running_mean.fill_(5.0)
    source.num_batches_tracked.fill_(7)
    update_ema(target, source, 0.9, buffers=buffers)
    torch.testing.assert_close(target.weight.data, torch.full((2,), 0.9 * 1.0 + 0.1 * 3.0))
    torch.testing.assert_close(target.running_mean, torch.full((2,), running_mean))
    assert int(target.num_batches_tracked) == 7


def test_a_target_is_apart_and_not_trained() -> None:
    source = nn.Linear(2, 2)
    target = make_target(source)
    assert not any(p.requires_grad for p in target.parameters())
    source.weight.data.add_(1.0)
    assert not torch.equal(target.weight, source.weight)
    update_ema(target, source, 0.0)
    assert torch.equal(target.weight, source.weight)


def test_a_decay_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        update_ema(nn.Linear(1, 1), nn.Linear(1, 1), 1.5)
