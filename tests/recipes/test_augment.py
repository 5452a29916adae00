"""Every recipe with labels augments and mixes labelled views in the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.supervised import draw_share
from engine.train.classifier_config import ClassifierConfig
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.distributed import seed_everything
from engine.train.phases import SupervisedPhase
from loaders.batch import Batch, PairedBatch
from loaders.classification import LabeledLoaders, SemiLoaders
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.views import presets
from loaders.views.policy import ColorJitter, RandomAffine
from recipes import (
    fixmatch,
    mean_teacher,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    temporal_ensembling,
)
from tests.recipes.labelled import FEW

Make = Callable[[Any], ClassifierRecipe]
RECIPES: dict[str, tuple[Any, Make, int]] = {
    "supervised": (supervised.Config, lambda c: supervised.Supervised(c, "abc"), 0),
    "rounds and cycles": (supervised.Config, lambda c: SupervisedPhase(c, "abc", cosine=True), 0),
    "fixmatch": (fixmatch.Config, lambda c: fixmatch.FixMatch(c, "abc"), 2),
    "mean_teacher": (mean_teacher.Config, lambda c: mean_teacher.MeanTeacher(c, "abc"), 2),
    "pseudo_label": (pseudo_label.Config, lambda c: pseudo_label.Classical(c, "abc"), 1),
    "temporal_ensembling": (
        temporal_ensembling.Config,
        lambda c: temporal_ensembling.TemporalEnsembling(c, "abc", np.arange(8)),
        1,
    ),
    "ssl_gan": (ssl_gan.Config, lambda c: ssl_gan.SslGan(c, "abc"), 1),
}
"""Configuration, recipe, and number of views of unlabelled images; 0 if there are no such images."""


def batch_of(name: str, x: Tensor) -> Any:
    rows = torch.arange(4)
    views = (x, x.flip(3)) if name == "mean_teacher" else (x,)
    labeled = Batch(views, rows % 3, rows, rows >= 0)
    number = RECIPES[name][2]
    many = Batch(tuple(torch.randn(number, 4, 3, 16, 16)), None, rows + 4, rows >= 0)
    return PairedBatch(labeled, many) if number else labeled


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_from_mixed_images(name: str, tmp_path: Path) -> None:
    """The network sees mixed images, and its targets are labels mixed in the same way."""
    make_config, make, _ = RECIPES[name]
    options = FEW | {"pack": tmp_path, "out": tmp_path, "mixing": "mixup", "seed": 3}
    if name == "ssl_gan":
        options |= {"backbone": "gan_discriminator_8", "generator_width": 4}
    seed_everything(0)
    recipe = make(make_config(**options)).train()
    recipe.make_schedule(1, 10)
    x, seen = torch.randn(4, 3, 16, 16), list[Tensor]()
    recipe.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recipe.classifier.register_forward_hook(lambda module, inputs, logits: logits.mul(0.0).add(ARRANGED))
    output = recipe.training_step(batch_of(name, x), 5)
    share = draw_share(1.0, 3, 5)
    torch.testing.assert_close(seen[0][:4], share * x + (1 - share) * x[[1, 0, 3, 2]])
    log_p = ARRANGED.log_softmax(0)
    expected = -sum(share * log_p[own] + (1 - share) * log_p[other] for own, other in PAIRS) / 4
    found = float(output.metrics.get("supervised", output.loss).detach())
    assert found == pytest.approx(float(expected) * (4 / 8 if name == "mean_teacher" else 1.0), rel=1e-4)


ARRANGED = torch.tensor([0.0, 1.0, 3.0])
PAIRS = ((0, 1), (1, 0), (2, 0), (0, 2))
"""Labels of the four images, and of the images with which they are mixed."""


def test_the_larger_share_is_the_label_that_counts() -> None:
    logits, shares = torch.eye(3), torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.9, 0.0, 0.1]])
    assert float(top1_of(logits, shares)) == pytest.approx(2 / 3)


def test_every_recipe_changes_its_labelled_views_alone(little_pack: Pack, tmp_path: Path) -> None:
    options = FEW | {"pack": little_pack.path, "out": tmp_path, "augment": ("rotation", "jitter")}
    own = (presets.weak(16),)
    config = fixmatch.Config(**options, unlabeled_splits=("train",))
    loaders = SemiLoaders(little_pack, config, own, own)
    plain = LabeledLoaders(little_pack, supervised.Config(**options), own)
    for changed in (*loaders.views, *plain.views):
        assert [type(operation) for operation in changed.operations[1:]] == [RandomAffine, ColorJitter]
    assert loaders.unlabeled_views == own
    config = self_training.Config(**options, unlabeled_splits=("train",), per_class=(2,))
    phases = SimpleNamespace(test_images=lambda: None, pool=lambda view: None)
    rounds = self_training.Rounds(config, little_pack, cast(Any, phases))
    assert isinstance(rounds.views[0].operations[-1], ColorJitter)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mixing_alpha: expected more than 0, found 0\.0"):
        ClassifierConfig(**(FEW | {"pack": tmp_path, "out": tmp_path}), mixing_alpha=0.0)
