"""The options of the stages that the pipeline of the 2021 report chains; see recipes/pipeline.py.

A stage is one of the other recipes. It shows the options that the report sets or the pipeline needs; pack,
network and labels are those of the whole chain, and the rest keeps the recipe's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.choices import ClassifierStart
from loaders.common.checks import Count, Share


@dataclass(frozen=True)
class Pretrain:
    """Stage 1: Barlow Twins on the unlabelled images."""

    from_init: bool = False
    """Go on from --init by Barlow Twins; else --init stands in the place of this stage."""
    epochs: Count = 1000
    """Passes over the unlabelled images. Report: 1000."""
    batch_size: Count = 512
    """Images per step over all ranks. Report: not stated."""
    projector: tuple[Count, ...] = (8192, 8192, 8192)
    """Output sizes of the projector's layers. Report: 8192 8192 8192."""
    min_crop: float = 0.08
    """Smallest share of the image that a view shows. Paper: 0.08."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate rises linearly; fewer than --pretrain.epochs. Paper: 10."""
    lr_weights: float | Literal["auto"] = "auto"
    """Peak learning rate of weights for 256 images, see recipes/barlow.py. Report: 0.5, without saying for
    how many images; auto: by the authors' table of batch sizes, which has 0.3 at 512."""


@dataclass(frozen=True)
class FineTune:
    """Stage 2: training on the true labels alone, also from scratch for comparison."""

    epochs: Count = 40
    """Passes over the labelled images. Report: 40."""
    batch_size: Count = 256
    """Images per step over all ranks, in stages 2 and 3. Report: not stated."""
    lr: float = 0.05
    """Peak learning rate, in stages 2 and 3. Report: 0.05."""
    min_crop: float = 0.08
    """Smallest share of the image that a view shows."""
    classifier_start: ClassifierStart = "probe"
    """How the new classifier on the pre-trained network begins, see recipes/supervised.py. Report: random."""


@dataclass(frozen=True)
class Rounds:
    """Stage 3: rounds of balanced pseudo-labels, see recipes/self_training.py."""

    per_class: tuple[Count, ...] = (200, 300, 400, 500)
    """Images per class that each round labels. Report: 200 300 400 500."""
    top_k: Count = 10
    """Classes that an image may stand under. Report: 10."""
    epochs: Count = 40
    """Passes over pseudo and true labels, per round. Report: not stated."""
    true_epochs: Count = 40
    """Passes over the true labels afterwards, per round. Report: not stated."""


@dataclass(frozen=True)
class SemiSupervised:
    """Stage 4, and again after the labels of stage 5: FixMatch, see recipes/fixmatch.py."""

    epochs: Count = 40
    """Passes over the unlabelled images. Report: 40."""
    lr: float = 0.01
    """Peak learning rate. Report: 0.01."""
    batch_size: Count = 64
    """Labelled images per step over all ranks. Paper: 64."""
    mu: Count = 7
    """Unlabelled images per labelled one. Paper: 7."""
    threshold: Share = 0.95
    """Least probability of a guess to count. Paper: 0.95."""
    ema_decay: Share = 0.999
    """Decay of the average of the weights, which is measured and kept, after its warm-up. Report: 0.999."""
    strong: Literal["fixmatch", "gentle"] = "fixmatch"
    """Strong view: the paper's, or one with smaller magnitudes."""
    pseudo_per_class: Count = 16
    """Pseudo-labels of each class that count as true ones. Report: 16. Their images stay among the unlabelled
    ones, as labelled images do in FixMatch's paper; the report takes them out."""


@dataclass(frozen=True)
class Ask:
    """Stage 5: labels bought for the images that would tell most, see recipes/active.py."""

    clusters: Count = 200
    """Clusters of k-means. Report: 200."""
    per_cluster: Count = 64
    """Images of each cluster. Report: 64."""
