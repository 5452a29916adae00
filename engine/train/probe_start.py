"""Fine-tuning that starts at the linear probe of its frozen features, and does not end below it.

With validation images the state before the first step is measured like every later one, and the best is
kept. Without them a rehearsal decides: the same training on four fifths of the labels, measured on the
fifth at its start and at its end. The training on all labels is whole, or not at all, and then the probe
stays. One label per class leaves nothing to rehearse on, and the probe stays too. The test images decide
nothing.
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
from engine.train.validation import AT_THE_END, Validation, ValidationState
from loaders.batch import Batch, Loader
from loaders.packs.labels.subsample import validation_part

PENALTY = 0.1
"""Inverse penalty of the probe, that of tools/few_labels.py: with few labels 1 is too weak, by 3 points on 64
labels of each class of CIFAR-10."""
HELD_SHARE = 0.2
"""Of each class's labels that a rehearsal is measured on."""
NEW_CLASSIFIER = {"new classifier": f"linear probe, C = {PENALTY:g}"}
"""The rule of a training that begins so; a resume under another is refused."""
_ABSENT = -1e4  # bias of a class without a label: a probability of zero whose gradient is a number


@torch.no_grad()
def start_at_probe(head: nn.Linear, features: Features) -> None:
    """Give a classifier layer the weights of the linear probe; called on every rank.

    Args:
        head: maps [B, D] to [B, C].
        features: those of the training images, [N, D], by the backbone in evaluation mode; all have a label.
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


def watched(held: Loader[Batch]) -> Validation:
    """Return what a rehearsal measures on the labels held out: its start, and its end after the last step.

    Between them the learning rate is high, and a state there says nothing of the next training's: on 64
    labels of each class of CIFAR-10 the tenth step lies 11 points under the start, the last 2 over it.
    """
    return Validation(held, AT_THE_END, "best", from_start=True)


def is_worth_it(state: ValidationState, num_images: int) -> bool:
    """Return whether a rehearsal ended above its start by more than chance brings.

    Few images are held out: the gain has to exceed one standard error of the difference of two accuracies.

    Args:
        state: state of the validation of a rehearsal that was `watched`.
        num_images: images on which the accuracies were measured.

    Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, the rule of one
        standard error.
    """
    variances = [p * (1.0 - p) for p in (state.best_top1, state.start_top1)]
    return state.best_top1 > state.start_top1 + math.sqrt(sum(variances) / max(1, num_images))
