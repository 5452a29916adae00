"""The recipe for transfer: a new classifier on a pre-trained backbone or on one of its inner layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.choices import Mixing
from engine.evaluate.knn import knn_scores
from engine.evaluate.predict import Accuracy
from engine.evaluate.representations import Features, topk_accuracy
from engine.nets.classifier import Classifier, save_classifier
from engine.nets.layers import Layer, measure_layer, read_layer
from engine.nets.starts import Start
from engine.objectives.supervised import mix, mixed_cross_entropy
from engine.train.advice import (
    at_chance,
    below_stride,
    no_better_than_start,
    one_class,
    warn,
    without_movement,
)
from engine.train.batchnorm import BATCHNORM
from engine.train.classifier_recipe import ACCURACY_NAME
from engine.train.distributed import on_main
from engine.train.loop import train
from engine.train.loop_config import LoopConfig
from engine.train.metrics import read_metrics
from engine.train.probe_start import NEW_CLASSIFIER, is_worth_it, rehearsal_part, watched
from engine.train.recipe import Recipe, StepOutput
from engine.train.schedule import Schedule, warmup_cosine
from engine.train.tuning_config import FineTuning, Job
from engine.train.validation import Validation, ValidationState
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.epochs import EpochLoader
from loaders.packs import LabelTable, Split
from loaders.packs.labels.validation import apart, are_true

WHOLE = Layer()
_NEIGHBOURS = 20  # that vote at most


def build_head(num_features: int, hidden: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a linear classifier, or fully connected layers with BatchNorm and ReLU between them.

    Args:
        num_features: size of the input.
        hidden: output sizes of the layers before the last; () for a linear classifier.
        num_classes: size of the output.

    Raises:
        UserError: a size in `hidden` is below 1.

    Source: Gidaris et al. 2018 (RotNet), section 4, the non-linear classifiers; Muaz and Kumar use
        three layers like theirs.
    """
    if any(size < 1 for size in hidden):
        raise UserError(f"hidden: expected positive sizes, found {list(hidden)}; change them")
    layers: list[nn.Module] = []
    for size_in, size_out in zip((num_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(size_in, size_out, bias=False), nn.BatchNorm1d(size_out), nn.ReLU(inplace=True)]
    last = nn.Linear((num_features, *hidden)[-1], num_classes)
    return nn.Sequential(*layers, last) if layers else last


class Transfer(Recipe):
    """A classifier trained by cross-entropy on a backbone, or on one of its layers."""

    name = "transfer"
    mixing: tuple[Mixing, float, int] = ("none", 1.0, 0)
    """The arguments `mixing`, `alpha` and `seed` of `engine.objectives.supervised.mix`."""
    probed = False
    """Whether the classifier was initialised as the linear probe of the backbone's features."""

    def __init__(
        self,
        backbone: nn.Module,
        backbone_name: str,
        num_classes: int,
        tuning: FineTuning,
        layer: Layer = WHOLE,
        hidden: tuple[int, ...] = (),
        resolution: int = 32,
    ) -> None:
        """Put a classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: name of the network, as `build_backbone` takes it.
            num_classes: number of logits.
            tuning: rates, steps and BatchNorm mode.
            layer: layer whose output is classified; by default the output of the whole backbone.
            hidden: output sizes of the classifier's layers before the last.
            resolution: side of the views in pixels.
        """
        super().__init__()
        self.backbone, self.backbone_name = backbone, backbone_name
        self.layer, self.num_classes, self.resolution = layer, num_classes, resolution
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self._learns = [p for p in backbone.parameters() if p.requires_grad]
        self._behind: list[nn.Parameter] = []
        if layer.name:
            num_features, self._behind = measure_layer(backbone, resolution, layer)
        self.classifier = build_head(num_features, hidden, num_classes)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # not saved: computed from the labels
        self.begin_stage(tuning)

    def begin_stage(self, tuning: FineTuning, frozen: bool = False) -> None:
        """Set how the next training goes, without changing any weights.

        Args:
            tuning: rates, steps and BatchNorm mode.
            frozen: train only the classifier; a backbone rate of 0 does the same.
        """
        self.tuning, self.frozen = tuning, frozen or tuning.lr_backbone == 0.0
        for parameter in self._learns:
            parameter.requires_grad_(not self.frozen)
        for parameter in self._behind:
            parameter.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to features [B, F]; a frozen backbone stores nothing for backward."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return read_layer(self.backbone, x, self.layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def train(self, mode: bool = True) -> Transfer:
        """Set the mode; a frozen backbone, or BatchNorm with fixed statistics, stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.tuning.batchnorm == "running":
            for module in self.backbone.modules():
                if isinstance(module, BATCHNORM):
                    module.eval()
        return self

    @property
    def rules(self) -> Mapping[str, str]:
        """The rules of this recipe; see `Recipe.rules`."""
        return NEW_CLASSIFIER if self.probed else {}

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Return the cross-entropy of one view of each image, mixed between neighbours if the run mixes."""
        assert batch.labels is not None
        mixed = mix(batch.views[0], batch.labels, *self.mixing, step)
        logits = self(mixed.x)
        loss = mixed_cross_entropy(logits.float(), mixed, weights=self.class_weights)
        top1 = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepOutput(loss, {"top1": top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with separate learning rates for backbone and classifier."""
        tuning = self.tuning
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.classifier.parameters()), "lr": tuning.lr_classifier},
            {"params": backbone, "lr": tuning.lr_backbone},
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=tuning.lr_classifier,
            momentum=0.9,
            weight_decay=tuning.weight_decay,
        )

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a warm-up and a cosine over `total_steps`, which may end inside an epoch."""
        return warmup_cosine(total_steps, self.tuning.warmup_steps)


@dataclass(frozen=True)
class Stage:
    """One of the trainings that a recipe goes through.

    Attributes:
        tuning: rates, steps and BatchNorm mode.
        frozen: train the classifier alone.
        loop: options of the loop.
        worth_it: False skips the training and leaves the weights as they are.
    """

    tuning: FineTuning
    frozen: bool
    loop: LoopConfig
    worth_it: bool = True


@dataclass(frozen=True)
class Trained:
    """The result of a stage.

    Attributes:
        steps: optimizer steps that led to the weights that the stage kept.
        found: state of the validation; None without validation images.
    """

    steps: int
    found: ValidationState | None = None


def train_stages(
    recipe: Transfer,
    loader: Loader[Batch],
    accelerator: Accelerator,
    stages: Sequence[Stage],
    validation: Validation | None,
) -> list[Trained]:
    """Train stage by stage; the recipe ends with the last weights, or the best if `validation` keeps them."""
    trained = []
    warn([below_stride(recipe.backbone, recipe.backbone_name, recipe.resolution)])
    for number, stage in enumerate(stages):
        if number:
            accelerator.free_memory()  # of the previous stage
        recipe.begin_stage(stage.tuning, stage.frozen)
        warn([stage.tuning.long_warmup])
        loop = stage.loop if stage.worth_it else replace(stage.loop, max_steps=0)
        done = train(recipe, loader, accelerator, loop, None, validation)
        found = done.validation
        keeps_best = validation is not None and validation.keep == "best" and found is not None
        trained.append(Trained(found.best_step if keeps_best and found is not None else done.step, found))
    return trained


class JobTrainer(Protocol):
    """Builds what the training of a job needs; implementations know the pack and the start."""

    @property
    def accelerator(self) -> Accelerator:
        """The Accelerator of this process."""

    def build(self, job: Job, images: Split) -> Transfer:
        """Build the network of a job in its state before training on the given images."""

    def augmented(self, job: Job, images: Split) -> Loader[Batch]:
        """Build the training loader of the given images."""

    def in_order(self, split: Split, labels: LabelTable | None = None) -> EpochLoader:
        """Build a loader of this rank's part of the given images, in order, without augmentation."""

    def plan(self, job: Job, steps_per_epoch: int, worth_it: Sequence[bool], ending: str = "") -> list[Stage]:
        """Return a job's stages: `worth_it` has a value for each; their folders' names contain `ending`."""


def train_job(
    trainer: JobTrainer,
    job: Job,
    recipe: Transfer,
    images: Split,
    validation: Validation | None,
    worth_it: Sequence[bool],
    ending: str = "",
) -> list[Trained]:
    """Train the network of a job on images; see `train_stages` and `JobTrainer.plan`."""
    loader = trainer.augmented(job, images)
    try:
        stages = trainer.plan(job, loader.steps_per_epoch, worth_it, ending)
        return train_stages(recipe, loader, trainer.accelerator, stages, validation)
    finally:
        loader.close()
        trainer.accelerator.free_memory()


def rehearse(trainer: JobTrainer, job: Job, images: Split, labels: LabelTable) -> list[bool]:
    """Rehearse a job whose number of steps is set; return for each stage whether to train it.

    See `engine.train.probe_start`.
    """
    none = [False] * job.num_stages
    guessed = np.isin(images.rows(np.arange(len(images))), labels.row[~are_true(labels)])
    part = rehearsal_part(np.where(guessed, -1, images.labels(labels)), job.seed)
    if part is None:
        return none
    held, rows = images.take(np.flatnonzero(part)), images.rows(np.arange(len(images)))
    others = apart(images.pack, rows, labels.of_rows(rows[part]))  # without copies of images held out
    rest = images.take(np.flatnonzero(np.isin(rows, others)))
    if len(np.unique(rest.labels(labels))) < 2:
        return none
    with trainer.in_order(held, labels) as loader:
        recipe, all_of_them = trainer.build(job, rest), [True] * job.num_stages
        trained = train_job(trainer, job, recipe, rest, watched(loader), all_of_them, "-rehearsal")
    return [done.found is not None and is_worth_it(done.found, len(held)) for done in trained]


def leave_classifier(
    out: Path, recipe: Transfer, start: Start, classes: Sequence[str], tested: Accuracy
) -> Path | None:
    """Print warnings, and write accuracy and classifier into a run folder; every rank calls this.

    predict.py, export.py and `--init` take the classifier's file.

    Returns:
        The classifier's file; None for a classifier of several layers or on an inner layer of the backbone,
        since only this recipe can rebuild such a network.
    """
    warn(
        [
            one_class(classes),
            at_chance(tested, classes),
            without_movement(records := read_metrics(out / "metrics.jsonl")),
            no_better_than_start(records),
        ]
    )

    def write() -> Path | None:
        write_atomic(out / ACCURACY_NAME, to_json({"raw": asdict(tested)}))
        if not isinstance(recipe.classifier, nn.Linear) or recipe.layer.name:
            return None
        known = Classifier(recipe.backbone, recipe.backbone_name, start.view, classes, start.origin)
        known.head = recipe.classifier
        return save_classifier(out, known, "raw")

    return on_main(write)


def vote(bank: Features, query: Features, num_classes: int) -> Accuracy:
    """Measure the accuracy of k-nearest-neighbour classification on rank 0; every rank gets the result.

    Args:
        bank: features of the neighbours; all have a label.
        query: features of the images to classify; all have a label.
    """

    def measure() -> Accuracy:
        votes = knn_scores(bank.h, bank.labels, query.h, num_classes, min(_NEIGHBOURS, len(bank.h)))
        top5 = topk_accuracy(votes, query.labels, min(5, num_classes))
        return Accuracy(topk_accuracy(votes, query.labels), len(query.labels), top5)

    return on_main(measure)
