"""Fine-tuning that starts at the linear probe of its frozen features, and does not end below it.

With validation images the state before the first step is measured like every later one, and the best is
kept. Without them a rehearsal decides: the same training on four fifths of the labels, measured on the
fifth. The whole training then takes as many steps as were best there, or none, and the probe stays. One
label per class leaves nothing to rehearse on, and the probe stays too. The test images decide nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.evaluate.probe_solver import fit_probe
from engine.evaluate.representations import Features
from engine.train.distributed import on_main
from engine.train.validation import ValidationState
from loaders.packs.labels.subsample import validation_part

PENALTY = 1.0
"""Inverse penalty of the probe, that of tools/probe.py."""
HELD_SHARE = 0.2
"""Of each class's labels that a rehearsal is measured on."""
_ABSENT = -1e4  # bias of a class without a label: a probability of zero whose gradient is a number


@torch.no_grad()
def start_at_probe(head: nn.Linear, features: Features) -> None:
    """Give a classifier layer the weights of the linear probe; called on every rank.

    Args:
        head: maps [B, D] to [B, C].
        features: of the images to train on, [N, D], by the backbone in evaluation mode; all have a label.
            Where they are all of one class there is no probe, and the layer stays as it is.
    """
    num_classes = head.out_features
    if len(torch.unique(features.labels)) < 2:
        return
    probe = on_main(lambda: fit_probe(features.h, features.labels, num_classes, PENALTY))
    head.weight.copy_(probe.weight)
    head.bias.copy_(probe.bias.clamp_min(_ABSENT))


def rehearsal_part(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_] | None:
    """Choose the labels that a rehearsal is measured on.

    Args:
        labels: int64 [N], of the images to train on; -1 for those that nothing is measured on, such as
            guessed ones.
        seed: chooses which.

    Returns:
        bool [N], True for those held out; None where no class has two labels, or only one class is left.
    """
    if np.bincount(labels[labels >= 0]).max(initial=0) < 2:
        return None
    part = validation_part(labels, HELD_SHARE, seed)
    return part if len(np.unique(labels[~part & (labels >= 0)])) > 1 else None


def steps_worth(state: ValidationState, num_images: int) -> int:
    """Return how many steps of a rehearsal are worth taking with all labels; 0 where the start is as good.

    Few images are held out, and the best of twenty measurements is high by chance: it has to lie further
    above the start than the largest of twenty equal accuracies would, sqrt(2 ln 20) = 2.4 standard errors.

    Args:
        state: of a training that was measured from its start on.
        num_images: that it was measured on.

    Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, has one standard error
        for one figure; sqrt(2 ln n) is the expected largest of n normal figures (Gumbel 1958).
    """
    widest = max(p * (1.0 - p) for p in (state.best_top1, state.start_top1))
    enough = state.start_top1 + math.sqrt(2 * math.log(20) * widest / max(1, num_images))
    return state.best_step if state.best_top1 > enough else 0
