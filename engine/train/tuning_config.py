"""The fields of one way to fine-tune, and the trainings that a network goes through."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.choices import ClassifierStart
from engine.evaluate.few_labels import SCRATCH
from loaders.common.checks import Count, check_numbers

Method = Literal["fine_tune", "frozen", "two_stage", "knn"]
_FEWEST_STEPS = 5  # that a pass counts for: a handful of labels fills one batch, and needs more than 20 steps


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
    steps: Count | None = None
    """Optimizer steps; by default `passes` over the labels."""
    passes: Count = 20
    """Passes over the labels where no steps are given; one counts as 5 steps at least. Paper: 20."""
    classifier_start: ClassifierStart = "random"
    """"probe": the new classifier starts as the linear probe of the frozen features, is measured before the
    first step, and training does not end below it; "random": it starts anew. Layers of --hidden do."""
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

    @property
    def long_warmup(self) -> str | None:
        """What to say of a warm-up as long as the training; None where it is shorter."""
        if not self.steps or self.warmup_steps < self.steps:
            return None
        return (
            f"warmup_steps: expected fewer than the {self.steps} steps of the training, found "
            f"{self.warmup_steps}; the learning rate never reaches its peak"
        )

    def with_steps(self, steps_per_pass: int) -> FineTuning:
        """Return the same with a number of steps, which follows the labels unless it was given.

        Args:
            steps_per_pass: batches of a pass over the labels.
        """
        return self if self.steps else replace(self, steps=self.passes * max(_FEWEST_STEPS, steps_per_pass))


@dataclass(frozen=True)
class Job:
    """One network to train and to test.

    Attributes:
        init: start of the network, or "scratch".
        method: what becomes of it.
        tuning: settings of its training.
        labels_per_class: k.
        seed: seed of the choice of labels, of new weights, of order and views.
        group: folder below that of the command, of a cell of a grid.
    """

    init: str
    method: Method
    tuning: FineTuning
    labels_per_class: int
    seed: int
    group: str = ""

    @property
    def folder(self) -> str:
        """Its run folder, below that of the command."""
        arm = SCRATCH if self.init == SCRATCH else "pretrained"
        return str(Path(self.group) / f"{arm}-{self.labels_per_class}-labels-seed-{self.seed}")

    @property
    def num_stages(self) -> int:
        """How many trainings it has."""
        return 2 if self.method == "two_stage" else 1

    def stages(self, head_steps: int | None, together_factor: float) -> list[tuple[str, FineTuning, bool]]:
        """Return its trainings: the ending of the folder, how, and whether the backbone is frozen.

        Args:
            head_steps: steps of the first of two stages; None for as many as the second has.
            together_factor: rate of the classifier in the second stage by that in the first.
        """
        if self.method != "two_stage":
            return [("", self.tuning, self.method == "frozen")]
        smaller = replace(self.tuning, lr_classifier=together_factor * self.tuning.lr_classifier)
        return [
            ("-head", replace(self.tuning, steps=head_steps or self.tuning.steps), True),
            ("", smaller, False),
        ]
