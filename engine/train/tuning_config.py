"""The options of fine-tuning, and the trainings that a network goes through."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.choices import ClassifierStart
from engine.evaluate.few_labels import SCRATCH
from loaders.common.checks import Count, check_numbers

Method = Literal["fine_tune", "frozen", "two_stage", "knn"]
_FEWEST_STEPS = 5  # least per pass: a few labels fill one batch, and 20 passes of one step would be too short


@dataclass(frozen=True)
class FineTuning:
    """Options for training networks that start in one way: pre-trained or from scratch."""

    lr_backbone: float
    """Peak learning rate of the backbone; 0 freezes it. Paper: 0.005 (for 1 % of ImageNet)."""
    lr_classifier: float
    """Peak learning rate of the classifier. Paper: 0.5, which overshoots on a handful of labels."""
    batchnorm: Literal["running", "batch"]
    """"running": normalise by the running statistics from pre-training, which stay fixed; "batch": by the
    statistics of each batch, and update the running ones. A frozen backbone always normalises by the running
    statistics, and its dropout is off."""
    steps: Count | None = None
    """Optimizer steps; by default as many as `passes` over the labels take."""
    passes: Count = 20
    """Passes over the labels, if `steps` is not given; a pass counts as at least 5 steps. Paper: 20."""
    classifier_start: ClassifierStart = "random"
    """"probe": the new classifier starts as the linear probe of the frozen features, and training does not
    end below this start, which is measured too; "random": with random weights, as layers of --hidden do."""
    min_crop: float = 0.08
    """Smallest share of the image that a training view shows. Paper: 0.08. Raise it a lot for only tens of
    labels, since a view that misses the object teaches a wrong label."""
    warmup_steps: int = 0
    """Steps over which the learning rates rise linearly."""
    weight_decay: float = 0.0
    """Weight decay of all parameters, biases and BatchNorm included. Paper: 0."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_numbers(self)

    @property
    def long_warmup(self) -> str | None:
        """A warning if the warm-up is not shorter than the training; else None."""
        if not self.steps or self.warmup_steps < self.steps:
            return None
        return (
            f"warmup_steps: expected fewer than the {self.steps} steps of the training, found "
            f"{self.warmup_steps}; the learning rate never reaches its peak"
        )

    def with_steps(self, steps_per_pass: int) -> FineTuning:
        """Return a copy with `steps` set: as given, or else from `passes` of `steps_per_pass` batches."""
        return self if self.steps else replace(self, steps=self.passes * max(_FEWEST_STEPS, steps_per_pass))


@dataclass(frozen=True)
class Job:
    """One network to train and to test.

    Attributes:
        init: start of the network, or "scratch".
        method: how the network is trained.
        tuning: options of the training.
        labels_per_class: number of labels of each class.
        seed: seed of the choice of labels, of new weights, and of the order and views of images.
        group: subfolder of the command's folder, for one cell of a grid; "" for none.
    """

    init: str
    method: Method
    tuning: FineTuning
    labels_per_class: int
    seed: int
    group: str = ""

    @property
    def folder(self) -> str:
        """The run folder, relative to the folder of the command."""
        arm = SCRATCH if self.init == SCRATCH else "pretrained"
        return str(Path(self.group) / f"{arm}-{self.labels_per_class}-labels-seed-{self.seed}")

    @property
    def num_stages(self) -> int:
        """The number of trainings of the network, if the method trains it."""
        return 2 if self.method == "two_stage" else 1

    def stages(self, head_steps: int | None, together_factor: float) -> list[tuple[str, FineTuning, bool]]:
        """Return (suffix of the run folder, options, whether the backbone is frozen) for each training.

        Args:
            head_steps: steps of the first of two stages; None for as many as the second has.
            together_factor: the classifier's learning rate in the second stage, divided by that in the first.
        """
        if self.method != "two_stage":
            return [("", self.tuning, self.method == "frozen")]
        smaller = replace(self.tuning, lr_classifier=together_factor * self.tuning.lr_classifier)
        return [
            ("-head", replace(self.tuning, steps=head_steps or self.tuning.steps), True),
            ("", smaller, False),
        ]
