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

average: they are averaged like the weights, over the same past steps.
own: the average has statistics of its own forward passes in training mode, which the method has to make.
copy: they are copied from the trained network; they fit the average if they change as slowly as it does.
"""
COPIED_MOMENTUM = 0.001
"""Momentum of BatchNorm, the share of a new batch, with which FixMatch's published codes copy statistics."""
MEAN, POWER = 1, 10
"""Of the warm-up: Mean Teacher's, and that of all others.

The plain mean of all weights so far fell 3 points behind the weights themselves after 700 steps of FixMatch
(25 labels for each class of CIFAR-10): while a network learns, its past is a worse network.
"""


def make_target(source: ModuleT) -> ModuleT:
    """Copy a module, without gradients."""
    return copy.deepcopy(source).requires_grad_(False)


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Give every BatchNorm of a module the momentum, the share that a new batch has in its statistics."""
    for part in module.modules():
        if isinstance(part, BATCHNORM):
            part.momentum = momentum


def warmed_up(step: int, decay: float, power: int = POWER) -> float:
    """Return min(1 - power / (step + power), decay), the decay of a step of a moving average.

    During the warm-up the weights of step t have a share of the average that grows as t^(power - 1), so that
    most of it is from the last `1 / power` of the run. Without a warm-up the start, which is random, would
    weigh decay^(step + 1): 82 % after 200 steps of 0.999.

    Args:
        step: steps taken before this one, by the loop's count, which goes on in a resumed run.
        decay: share of the old average that stays after the warm-up, in [0, 1].
        power: `MEAN` for the plain mean of all weights so far, as in Mean Teacher.

    Source: Tarvainen and Valpola 2017 for the power of 1 (the authors' code in PyTorch counts from 1: there
        the start has the weight of one step); Shamir and Zhang 2013, polynomial-decay averaging with
        eta = power - 1, for others.
    """
    return min(1.0 - power / (step + power), decay)


@torch.no_grad()
def update_ema(
    target: nn.Module, source: nn.Module, decay: float, statistics: Statistics = "average"
) -> None:
    """Move the target's parameters towards the source's: target = decay * target + (1 - decay) * source.

    Args:
        target: module of the same structure, changed in place.
        source: the trained module.
        decay: share of the old average that stays, in [0, 1]; 0 copies, 1 keeps.
        statistics: the rule for buffers; under "average", buffers that are not floating point, such as
            BatchNorm's count of batches, are copied.
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
        get_ema_multi_avg_fn(decay)(targets, sources, 0)  # a few launches for all tensors
