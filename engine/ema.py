"""Moving averages of a network's weights: target networks and evaluation weights."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_target(source: ModuleT) -> ModuleT:
    """Copy a module into one that is never trained by gradients."""
    return copy.deepcopy(source).requires_grad_(False)


@torch.no_grad()
def update_ema(
    target: nn.Module, source: nn.Module, decay: float, buffers: Literal["copy", "average"] = "copy"
) -> None:
    """Move the target's parameters towards the source's: target = decay * target + (1 - decay) * source.

    Args:
        target: module of the same structure, changed in place.
        source: the trained module.
        decay: in [0, 1]; 0 copies, 1 keeps.
        buffers: "copy" takes BatchNorm's running statistics as they are, "average" averages the floating
            ones like parameters; published codes differ and results depend on it, so it is named.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay of a moving average: expected a value in [0, 1], got {decay}")
    averaged = [(t, s) for t, s in zip(target.parameters(), source.parameters(), strict=True)]
    for target_buffer, source_buffer in zip(target.buffers(), source.buffers(), strict=True):
        if buffers == "average" and target_buffer.is_floating_point():
            averaged.append((target_buffer, source_buffer))  # type: ignore[arg-type]
        else:
            target_buffer.copy_(source_buffer)
    if averaged:
        targets: list[Tensor] = [t for t, _ in averaged]
        torch._foreach_lerp_(targets, [s for _, s in averaged], 1.0 - decay)
