"""The options of the stages that the pipeline of the 2021 report chains; see recipes/pipeline.py.

Each stage runs another recipe. Each class here has the options that the report sets or that the pipeline
needs. Pack, network and labels are set for the whole chain; most other options keep the recipe's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.choices import ClassifierStart
from loaders.common.checks import Count, Share


@dataclass(frozen=True)
class Pretrain:
    """Stage 1: Barlow Twins on the unlabelled images."""

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
    """Peak learning rate of weights per 256 images, see recipes/barlow.py. Report: 0.5, for an unstated
    number of images; auto: from the authors' table of batch sizes, which has 0.3 at 512."""
    from_init: bool = False
    """Train the weights of --init further by Barlow Twins; by default --init replaces this stage."""


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
    """Smallest share of the image that a view shows, in stages 2 and 3."""
    classifier_start: ClassifierStart = "probe"
    """Initialisation of the new classifier on the pre-trained network, see recipes/supervised.py. Report:
    random."""


@dataclass(frozen=True)
class Rounds:
    """Stage 3: rounds of balanced pseudo-labels, see recipes/self_training.py."""

    per_class: tuple[Count, ...] = (200, 300, 400, 500)
    """Images per class to label, one number for each round. Report: 200 300 400 500."""
    top_k: Count = 10
    """An image may be selected for this many of its most probable classes. Report: 10."""
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
    """Smallest probability at which a predicted label counts. Paper: 0.95."""
    ema_decay: Share = 0.999
    """Decay, after its warm-up, of the average of the weights, which is used as the result. Report: 0.999."""
    strong: Literal["fixmatch", "gentle"] = "fixmatch"
    """Strong view. fixmatch: the paper's; gentle: the same operations with smaller magnitudes."""
    pseudo_per_class: Count = 16
    """Pseudo-labels of each class that are used like true labels. Report: 16. Their images stay among the
    unlabelled ones, as labelled images do in FixMatch's paper; the report removes them there."""


@dataclass(frozen=True)
class Ask:
    """Stage 5: labels bought for the most informative images, see recipes/active.py."""

    clusters: Count = 200
    """Number of k-means clusters. Report: 200."""
    per_cluster: Count = 64
    """Images to choose from each cluster. Report: 64."""
