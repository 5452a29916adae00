"""The fields of one way to fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loaders.common.checks import Count, check_numbers


@dataclass(frozen=True)
class FineTuning:
    """How a network with one kind of start is trained."""

    lr_backbone: float
    """Peak learning rate of the backbone; 0 freezes it. Paper: 0.005 (1 % of ImageNet)."""
    lr_classifier: float
    """Peak learning rate of the classifier. Paper: 0.5, which overshoots on a handful of labels."""
    batchnorm: Literal["running", "batch"]
    """"running": normalise by the statistics that pre-training left, and keep them; "batch": by those of
    each batch, which the running ones follow. A frozen backbone always normalises by the running ones,
    and nothing is dropped in it."""
    steps: Count = 200
    """Optimizer steps."""
    min_crop: float = 0.08
    """Smallest share of the image that a training view shows. Paper: 0.08; much more where there are only
    tens of labels, since a view that misses the object teaches a wrong label."""
    warmup_steps: int = 0
    """Steps over which the learning rates rise linearly."""
    weight_decay: float = 0.0
    """Weight decay of all weights. Paper: 0."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no training."""
        check_numbers(self)
