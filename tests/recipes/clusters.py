"""Two clusters of points: the smallest problem on which unlabelled data help, and by far.

Eight labels tell the direction between the clusters badly in 100 dimensions, 400 more points tell it well.
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
PROBLEMS = 5  # what eight labels tell differs too much from one draw of points to the next
Views = Callable[[Tensor], tuple[Tensor, ...]]


def accuracy_on_clusters(
    make_recipe: Callable[[], ClassifierRecipe],
    labeled: Views,
    unlabeled: Views,
    seed: int,
    steps: int = 200,
    lr: float = 0.05,
) -> float:
    """Train a recipe's step with a linear classifier in place of its network, on several draws of points.

    Args:
        make_recipe: builds the recipe, of two classes.
        labeled: the views of labelled points [B, 100].
        unlabeled: likewise, of unlabelled ones.
        seed: of the points, the weights and the views.
        steps: of SGD.
        lr: of SGD.

    Returns:
        The test accuracy, as the mean over the draws.
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
