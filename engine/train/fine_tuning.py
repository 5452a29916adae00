"""The recipe of transfer: a pre-trained backbone, cut off at a layer, under a new classifier."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.evaluate.knn import knn_scores
from engine.evaluate.predict import Accuracy
from engine.evaluate.representations import Features, topk_accuracy
from engine.nets.layers import Layer, measure_layer, read_layer
from engine.objectives.cross_entropy import label_loss
from engine.train.batchnorm import BATCHNORM
from engine.train.distributed import on_main
from engine.train.loop import train
from engine.train.loop_config import LoopConfig
from engine.train.recipe import Recipe, StepOutput
from engine.train.schedule import Schedule, warmup_cosine
from engine.train.tuning_config import FineTuning
from engine.train.validation import Validation
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError

WHOLE = Layer()


def build_head(num_features: int, hidden: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a linear classifier, or fully connected layers with BatchNorm and ReLU between them.

    Args:
        num_features: F.
        hidden: sizes of the layers before the last; () for a linear classifier.
        num_classes: C.

    Source: the non-linear classifiers of Gidaris et al. 2018 (RotNet), section 4; the reports use their three
        layers.
    """
    if any(size < 1 for size in hidden):
        raise UserError(f"hidden: expected positive sizes, found {list(hidden)}; change them")
    layers: list[nn.Module] = []
    for size_in, size_out in zip((num_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(size_in, size_out, bias=False), nn.BatchNorm1d(size_out), nn.ReLU(inplace=True)]
    last = nn.Linear((num_features, *hidden)[-1], num_classes)
    return nn.Sequential(*layers, last) if layers else last


class Transfer(Recipe):
    """A backbone up to a layer and a new classifier under one cross-entropy."""

    name = "transfer"

    def __init__(
        self,
        backbone: nn.Module,
        backbone_name: str,
        num_classes: int,
        tuning: FineTuning,
        layer: Layer = WHOLE,
        hidden: tuple[int, ...] = (),
        frozen: bool = False,
        resolution: int = 32,
    ) -> None:
        """Put a classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: as `build_backbone` takes it.
            num_classes: C.
            tuning: rates, steps and BatchNorm mode.
            layer: where the features are read.
            hidden: layers of the classifier before the last.
            frozen: train only the classifier; a rate of 0 does the same.
            resolution: side of the views; needed where `layer` names one.
        """
        super().__init__()
        self.backbone, self.backbone_name = backbone, backbone_name
        self.layer, self.num_classes = layer, num_classes
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self._behind: list[nn.Parameter] = []
        if layer.name:
            num_features, self._behind = measure_layer(backbone, resolution, layer)
        self.classifier = build_head(num_features, hidden, num_classes)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # computed from the labels
        self.begin_stage(tuning, frozen)

    def begin_stage(self, tuning: FineTuning, frozen: bool) -> None:
        """Set how the next training goes; the weights stay as they are."""
        self.tuning, self.frozen = tuning, frozen or tuning.lr_backbone == 0.0
        self.backbone.requires_grad_(not self.frozen)
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
        """Set the mode; BatchNorm of a backbone that keeps its statistics stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.tuning.batchnorm == "running":
            for module in self.backbone.modules():
                if isinstance(module, BATCHNORM):
                    module.eval()
        return self

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Classify one view of each image."""
        assert batch.labels is not None
        logits = self(batch.views[0])
        loss = label_loss(logits.float(), batch.labels, self.class_weights)
        top1 = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepOutput(loss, {"top1": top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with a learning rate for the backbone and one for the classifier."""
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
        """Return a cosine over the wanted steps; the last epoch may be cut short."""
        return warmup_cosine(self.tuning.steps, self.tuning.warmup_steps)


def train_stage(
    recipe: Transfer,
    loader: Loader[Batch],
    accelerator: Accelerator,
    config: LoopConfig,
    validation: Validation | None,
) -> int:
    """Train by the recipe's present stage; return the number of steps behind its final weights.

    Args:
        recipe: ends with the last weights, or with the best if these are kept.
        loader: of the training.
        accelerator: of the process.
        config: of the loop.
        validation: what to measure while training; None for nothing.
    """
    done = train(recipe, loader, accelerator, config, validation=validation)
    accelerator.free_memory()
    keeps_best = validation is not None and validation.keep == "best" and done.validation is not None
    return done.validation.best_step if keeps_best and done.validation is not None else done.step


def vote(bank: Features, query: Features, num_classes: int, k: int = 20) -> Accuracy:
    """Classify images by their nearest labelled neighbours on rank 0; every rank gets the result.

    Args:
        bank: of the images that vote; all have a label.
        query: of the images to classify; all have a label.
        num_classes: C.
        k: number of neighbours; all if there are fewer.
    """

    def measure() -> Accuracy:
        votes = knn_scores(bank.h, bank.labels, query.h, num_classes, min(k, len(bank.h)))
        top5 = topk_accuracy(votes, query.labels, min(5, num_classes))
        return Accuracy(topk_accuracy(votes, query.labels), len(query.labels), top5)

    return on_main(measure)
