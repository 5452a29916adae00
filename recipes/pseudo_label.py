r"""Pseudo-labels in three ways: made afresh each batch, kept for good, or taken in turns with true labels.

    python recipes/pseudo_label.py --pack packs/mine --mode local --labels-per-class 15 --out runs/pseudo

Sources: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks"; the modes, thresholds and constants are those of the INF473V report (Bonnet and Ahmad), section 2.

* classical: each step guesses the labels of its unlabelled images and learns the confident ones at once,
  with a weight alpha(t) that grows (section 2.4).
* permanent: after each cycle every confident image gets its guess as a label, for good (section 2.5).
* local: train on true labels, label everything confident, train on that, train on true labels again, and
  so on; the pseudo-labels of a cycle are forgotten after it (section 2.6).

The algorithm boxes are `Classical.training_step`, `run_permanent` and `run_local`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import tyro

from engine.classifier_recipe import (
    ClassifierConfig,
    ClassifierRecipe,
    ClassifierSummary,
    print_classifier,
)
from engine.objectives.pseudo_label import growing_threshold, label_weight, pseudo_label_loss
from engine.recipe import StepOutput
from engine.schedule import Schedule, constant
from loaders import BackendName
from loaders.batch import PairedBatch
from loaders.errors import UserError, run_command


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Train a classifier with pseudo-labels."""

    mode: Literal["classical", "permanent", "local"] = "classical"
    """How pseudo-labels live, see above."""
    unlabeled_splits: tuple[str, ...] = ("unlabeled",)
    """Splits whose images get pseudo-labels."""
    backbone: str = "resnet50"
    """Any timm name (resnet50 or a ViT in the report), wrn_28_2, or tiny_resnet for a CPU."""
    resolution: int = 64
    """Side of the views in pixels. Report: not stated."""
    epochs: int = 4
    """Classical: passes over the unlabelled images; else passes over the labelled images of each cycle.
    Report: 4."""
    cycles: int = 4
    """Permanent and local: how often all unlabelled images are labelled."""
    first_epochs: int = 10
    """Permanent and local: passes over the true labels before the first cycle."""
    batch_size: int = 128
    """Labelled images per step over all ranks. Report: 128 (64 for ViT)."""
    mu: int = 7
    """Classical: unlabelled images per labelled one. Report: 7."""
    threshold: float = 0.95
    """Least probability of a guess. Report: 0, 0.9 or 0.95, of which the last did best."""
    threshold_growth: float = 0.0
    """Added to the threshold per epoch (classical) or cycle. Report: 0.02, from 0.9."""
    threshold_limit: float = 0.99
    """Where the growing threshold stops: at 1 no guess would count."""
    unlabeled_weight: float = 1.0
    """Peak of alpha(t). Report: 1; Lee: 3."""
    ramp_start: float = 0.0
    """Epoch at which alpha(t) begins to grow. Lee: 100 of 600."""
    ramp_end: float = 0.0
    """Epoch at which it reaches its peak. Lee: 600."""
    lr: float = 0.001
    """Constant learning rate. Report: 0.001."""
    backend: BackendName = "auto"
    """Loader backend."""

    def __post_init__(self) -> None:
        """Refuse what labels nothing."""
        super().__post_init__()
        if not 0.0 <= self.threshold <= 1.0 or self.cycles < 1 or self.ramp_end < self.ramp_start:
            raise UserError(
                "expected threshold in [0, 1], cycles >= 1 and ramp_end >= ramp_start, found "
                f"{self.threshold}, {self.cycles} and {self.ramp_start} to {self.ramp_end}"
            )
