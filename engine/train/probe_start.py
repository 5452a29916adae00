"""Fine-tuning that starts at the linear probe of the frozen features and does not end below it.

With validation images, the state before the first step is measured too and, by default, the best state is
kept. Without them a rehearsal decides: the same training on four fifths of the labels, measured on the
other fifth at its start and at its end. If it gained, the training on all labels follows; if not, nothing is
trained and the probe stays. One label per class leaves nothing to rehearse on, so the probe stays there too.
The test images decide nothing.
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
"""Inverse strength C of the probe's penalty, as in tools/few_labels.py. With few labels, the penalty at C = 1
is too weak: it costs 3 points on 64 labels of each class of CIFAR-10."""
HELD_SHARE = 0.2
"""Share of each class's labels that a rehearsal is measured on."""
NEW_CLASSIFIER = {"new classifier": f"linear probe, C = {PENALTY:g}"}
"""The rule of trainings that start at the probe; see `Recipe.rules`."""
_ABSENT = -1e4  # bias of a class without labels: its probability is 0, and gradients stay finite


@torch.no_grad()
def start_at_probe(head: nn.Linear, features: Features) -> None:
    """Give a classifier layer the weights of the linear probe; every rank calls this.

    Args:
        head: maps [B, D] to [B, C].
        features: features of the training images [N, D], from the backbone in evaluation mode; all have a
            label. If all are of one class, there is no probe, and the layer stays as it is.
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
        labels: int64 [N], labels of the training images; -1 for images that cannot be held out, such as
            those with guessed labels.
        seed: seed of the choice.

    Returns:
        bool [N], True for images held out; None if no class has two labels, or fewer than two classes would
        remain to train on.
    """
    if np.bincount(labels[labels >= 0]).max(initial=0) < 2:
        return None
    part = validation_part(labels, HELD_SHARE, seed)
    return part if len(np.unique(labels[~part & (labels >= 0)])) > 1 else None


def watched(held: Loader[Batch]) -> Validation:
    """Return the validation of a rehearsal: it measures the start and the end on the held-out images.

    States in between say nothing about the training that follows, since the learning rate is high there: on
    64 labels of each class of CIFAR-10, the tenth step is 11 points below the start, and the last step is 2
    points above it.
    """
    return Validation(held, AT_THE_END, "best", from_start=True)


def is_worth_it(state: ValidationState, num_images: int) -> bool:
    """Return whether a rehearsal ended above its start by more than chance explains.

    Few images are held out, so the gain must exceed one standard error of the difference of two accuracies.

    Args:
        state: state of the validation from `watched`, after the rehearsal.
        num_images: images on which the accuracies were measured.

    Source: Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, the rule of one
        standard error.
    """
    variances = [p * (1.0 - p) for p in (state.best_top1, state.start_top1)]
    return state.best_top1 > state.start_top1 + math.sqrt(sum(variances) / max(1, num_images))
