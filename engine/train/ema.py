"""Moving averages of a network's weights: target networks and evaluation weights."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.train.batchnorm import BATCHNORM

ModuleT = TypeVar("ModuleT", bound=nn.Module)

Statistics = Literal["average", "own", "copy"]
"""The rule for BatchNorm's running statistics in the average of a network's weights.

average: the statistics are averaged like the weights, over the same past steps.
own: the averaged network gathers statistics in forward passes in training mode, which the method has to run.
copy: the statistics are copied from the trained network; they must change as slowly as the average does.
"""
COPIED_MOMENTUM = 0.001
"""BatchNorm momentum (the weight of a new batch) in FixMatch's published code, which copies statistics."""
MEAN, POWER = 1, 10
"""Values of `power` in `warmed_up`: Mean Teacher uses `MEAN`, all other methods use `POWER`.

With `MEAN`, the average is the plain mean of all past weights. After 700 steps of FixMatch (25 labels per
class of CIFAR-10) it was 3 points less accurate than the current weights, since early weights are poor.
"""


def make_target(source: ModuleT) -> ModuleT:
    """Return a copy of a module; the parameters of the copy take no gradients."""
    return copy.deepcopy(source).requires_grad_(False)


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Set the momentum, the weight of a new batch in running statistics, of every BatchNorm in a module."""
    for part in module.modules():
        if isinstance(part, BATCHNORM):
            part.momentum = momentum


def warmed_up(step: int, decay: float, power: int = POWER) -> float:
    """Return the decay of a moving average at a step: min(1 - power / (step + power), decay).

    During the warm-up, the weights of step t enter the average in proportion to t^(power - 1), so most of the
    average comes from the last `1 / power` of the run. Without a warm-up, the random initial weights would
    keep a share of decay^(step + 1) of the average: 82 % after 200 steps with decay 0.999.

    Args:
        step: steps taken before this one, including those before a resume.
        decay: share of the old average that a step keeps after the warm-up, in [0, 1].
        power: `MEAN` gives the plain mean of all past weights, as in Mean Teacher.

    Source: Tarvainen and Valpola 2017 for power 1 (the authors' PyTorch code counts steps from 1, so there
        the initial weights count as one step); Shamir and Zhang 2013, polynomial-decay averaging with
        eta = power - 1, for other powers.
    """
    return min(1.0 - power / (step + power), decay)


@torch.no_grad()
def update_ema(
    target: nn.Module, source: nn.Module, decay: float, statistics: Statistics = "average"
) -> None:
    """Move the target's parameters towards the source's: target = decay * target + (1 - decay) * source.

    Args:
        target: module with the structure of `source`, changed in place.
        source: the trained module.
        decay: share of the old target that stays, in [0, 1].
        statistics: rule for buffers, see `Statistics`; under "average", buffers that are not floating point,
            such as BatchNorm's count of batches, are copied.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay of a moving average: expected a value in [0, 1], got {decay}")
    targets: list[Tensor] = list(target.parameters())
    sources: list[Tensor] = list(source.parameters())
    if len(targets) != len(sources):
        raise ValueError(f"moving average: expected {len(targets)} parameters, got {len(sources)}")
    if statistics != "own":
        for target_buffer, source_buffer in zip(target.buffers(), source.buffers(), strict=True):
            if statistics == "average" and target_buffer.is_floating_point():
                targets.append(target_buffer)
                sources.append(source_buffer)
            else:
                target_buffer.copy_(source_buffer)
    if targets:
        get_ema_multi_avg_fn(decay)(targets, sources, 0)  # in few kernel launches
