"""Two clusters of points: a small problem on which unlabelled data help very much.

In 100 dimensions, eight labels show the direction between the clusters poorly; 400 more points show it well.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn

from engine.train.classifier_recipe import ClassifierRecipe
from engine.train.distributed import seed_everything
from engine.train.ema import make_target
from loaders.batch import Batch, PairedBatch

DIMENSIONS, NUM_LABELED, NUM_UNLABELED = 100, 8, 400
PROBLEMS = 5  # accuracies from eight labels vary too much over draws of the points
Views = Callable[[Tensor], tuple[Tensor, ...]]


def accuracy_on_clusters(
    make_recipe: Callable[[], ClassifierRecipe],
    labeled: Views,
    unlabeled: Views,
    seed: int,
    steps: int = 200,
    lr: float = 0.05,
) -> float:
    """Train by a recipe's step, with a linear classifier as its network; return the mean test accuracy.

    Args:
        make_recipe: builds the recipe for two classes.
        labeled: returns the views of labelled points [B, 100].
        unlabeled: returns the views of unlabelled points [B, 100].
        seed: seed of the points, the weights and the views; the mean is over several draws of these.
        steps: steps of SGD.
        lr: learning rate of SGD.
    """
    seeds = range(PROBLEMS * seed, PROBLEMS * (seed + 1))
    return fmean(_accuracy_of_one(make_recipe, labeled, unlabeled, s, steps, lr) for s in seeds)


def _accuracy_of_one(
    make_recipe: Callable[[], ClassifierRecipe],
    labeled: Views,
    unlabeled: Views,
    seed: int,
    steps: int,
    lr: float,
) -> float:
    seed_everything(seed)
    labels = torch.arange(2 * NUM_UNLABELED) % 2
    x = torch.randn(len(labels), DIMENSIONS)
    x[:, 0] += 2.5 * (1 - 2 * labels)
    recipe = make_recipe()
    recipe.classifier = nn.Linear(DIMENSIONS, 2)
    if recipe.average is not None:
        recipe.average = make_target(recipe.classifier)
    recipe.make_schedule(steps // 20, steps)
    optimizer = torch.optim.SGD(recipe.classifier.parameters(), lr)
    rows = torch.arange(NUM_UNLABELED)
    few = rows[:NUM_LABELED]
    for step in range(steps):
        known = Batch(labeled(x[few]), labels[few], few, few >= 0)
        pair = PairedBatch(known, Batch(unlabeled(x[rows]), None, rows, rows >= 0))
        optimizer.zero_grad()
        recipe.training_step(pair, step).loss.backward()
        optimizer.step()
        with torch.no_grad():
            recipe.after_step(step)
    test = slice(NUM_UNLABELED, None)
    return float((recipe.network(x[test]).argmax(1) == labels[test]).float().mean())
