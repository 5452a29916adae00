"""The base class of recipes with labels: network, optimizer and the results of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.choices import Weights
from engine.evaluate.feature_store import FOLDER
from engine.evaluate.predict import Accuracy, measure_accuracy
from engine.evaluate.representations import Features
from engine.nets.classifier import Classifier, build_classifier, save_classifier
from engine.objectives.cross_entropy import class_weights
from engine.objectives.precision import at_least_float32
from engine.objectives.supervised import mix
from engine.train.classifier_config import ClassifierConfig
from engine.train.distributed import on_main
from engine.train.ema import (
    COPIED_MOMENTUM,
    MEAN,
    POWER,
    Statistics,
    make_target,
    set_momentum,
    update_ema,
    warmed_up,
)
from engine.train.optim import split_by_dimension
from engine.train.probe_start import NEW_CLASSIFIER, start_at_probe
from engine.train.recipe import Recipe
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json

ACCURACY_NAME = "accuracy.json"
ReadFeatures = Callable[[nn.Module, Path, torch.device], Features]
"""Maps (backbone, folder to keep features in, device of the backbone) to features of the labelled images."""


class ClassifierRecipe(Recipe):
    """A classifier, trained by SGD by default, with a moving average of its weights if the method has one."""

    def __init__(
        self,
        config: ClassifierConfig,
        classes: Sequence[str],
        average: Statistics | None = None,
        nesterov: bool = False,
        decay_vectors: bool = False,
    ) -> None:
        """Build the network; call `seed_everything` first.

        Args:
            classes: names of the C classes, in the order of the labels.
            average: rule for BatchNorm's statistics in a moving average of the weights, which the subclass
                updates; None keeps no average. "copy" also sets the momentum that BatchNorm then needs.
            nesterov: use Nesterov momentum.
            decay_vectors: apply weight decay to biases and BatchNorm too.
        """
        super().__init__()
        self.classifier = build_classifier(
            config.backbone, config.evaluation_view, classes, config.init, config.keep_head
        )
        if config.freeze_backbone:
            self.classifier.backbone.requires_grad_(False)
        self.frozen = config.freeze_backbone
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # not saved: computed from the labels
        self._weighing = config.class_weights
        self._mixing = (config.mixing, config.mixing_alpha, config.seed)
        self.backbone_name = config.backbone
        self.read_features: ReadFeatures | None = None
        if average == "copy":
            set_momentum(self.classifier, COPIED_MOMENTUM)
        self.average = None if average is None else make_target(self.classifier)
        self._statistics = average
        self._power = MEAN if average == "own" else POWER  # "own" is used by Mean Teacher alone
        self._rates = (config.lr, config.lr if config.lr_head is None else config.lr_head)
        self._momentum, self._nesterov = config.momentum, nesterov
        self._lr_vectors = config.lr_vectors
        self._weight_decays = (config.weight_decay, config.weight_decay if decay_vectors else 0.0)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The trained backbone."""
        return self.classifier.backbone

    @property
    def network(self) -> Classifier:
        """The network to validate and use: the average if there is one."""
        return self.classifier if self.average is None else self.average

    @property
    def measured_beside(self) -> Mapping[str, Classifier]:
        """The classifier itself if its average is used, to show whether the average falls behind it."""
        return {} if self.average is None else {"raw": self.classifier}

    @property
    def rules(self) -> Mapping[str, str]:
        """The rules of this recipe; see `Recipe.rules`."""
        rules: dict[str, str] = {}
        if self._statistics is not None:
            rules["average of the weights"] = f"warm-up {self._power}, statistics: {self._statistics}"
        if self.frozen:
            rules["frozen backbone"] = "evaluation mode"
        return rules if self.read_features is None else {**rules, **NEW_CLASSIFIER}

    def train(self, mode: bool = True) -> ClassifierRecipe:
        """Set the mode; frozen backbones, and averages without "own" statistics, stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.classifier.backbone.eval()
        if self.average is not None:
            self.average.train(mode and self._statistics == "own")
            if self.frozen:
                self.average.backbone.eval()
        return self

    def classify(self, *views: Tensor) -> list[Tensor]:
        """Map views [B_i, 3, H, W] to logits [B_i, C], at least float32, in one forward pass.

        So BatchNorm normalises all views by common statistics. Published code that splits a batch over
        devices interleaves the rows of the views to achieve that.
        """
        sizes = [len(x) for x in views]
        return list(torch.split(at_least_float32(self.classifier(torch.cat(views))), sizes))

    def begin_training(self, out: Path, device: torch.device) -> None:
        """Set the classifier layer to the linear probe of the frozen features, if `read_features` is set."""
        if self.read_features is None:
            return
        folder = out / FOLDER
        start_at_probe(self.classifier.head, self.read_features(self.classifier.backbone, folder, device))
        if self.average is not None:
            self.average.head.load_state_dict(self.classifier.head.state_dict())
        on_main(lambda: shutil.rmtree(folder))

    def mixed(self, batch: Batch, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the views and labels of a labelled batch, mixed between neighbours if the run mixes.

        Returns:
            The views [B, 3, H, W], all mixed by the same shares, and the labels: int64 [B] without mixing,
            else the shares of the classes, float32 [B, C].
        """
        assert batch.labels is not None
        kind, alpha, seed = self._mixing
        if kind == "none":
            return batch.views, batch.labels
        parts = [mix(view, batch.labels, kind, alpha, seed, step) for view in batch.views]
        return tuple(part.x for part in parts), parts[0].shares(self.classifier.num_classes)

    def weigh_classes(self, counts: Tensor) -> None:
        """Set the class weights of the loss, if the run has any, from label counts, int64 [C]."""
        if self._weighing != "none":
            self.class_weights = class_weights(counts, effective=self._weighing == "effective")

    def update_average(self, step: int, decay: float) -> None:
        """Update the average, if there is one; for a subclass's `after_step`.

        Args:
            step: index of the step just taken, over the whole run.
            decay: decay of the average after its warm-up.
        """
        if self.average is not None and self._statistics is not None:
            update_ema(self.average, self.classifier, warmed_up(step, decay, self._power), self._statistics)

    @property
    def networks(self) -> dict[Weights, Classifier]:
        """The classifier ("raw"), and its average ("ema") if there is one."""
        networks: dict[Weights, Classifier] = {"raw": self.classifier}
        if self.average is not None:
            networks["ema"] = self.average
        return networks

    def leave_last(self, out: Path) -> None:
        """Write the last weights of the classifier and of its average, if any, into a folder."""
        out.mkdir(exist_ok=True)
        for weights, network in self.networks.items():
            save_classifier(out, network, weights)

    def finish(self, out: Path, test_loader: Loader[Batch] | None, device: torch.device) -> Accuracy | None:
        """Write the classifier and its average, if any; measure each on the test images, if there are any."""
        measured: dict[str, Accuracy] = {}
        for weights, network in self.networks.items():
            on_main(lambda n=network, w=weights: save_classifier(out, n, w))  # type: ignore[misc]
            if test_loader is not None:
                measured[weights] = measure_accuracy(network, test_loader, device, out, network.classes)
        if measured:
            content = to_json({weights: asdict(accuracy) for weights, accuracy in measured.items()})
            on_main(lambda: write_atomic(out / ACCURACY_NAME, content))
        return measured.get("ema", measured.get("raw"))

    def make_optimizer(self) -> Optimizer:
        """Return SGD over `parameter_groups`."""
        groups, lr = self.parameter_groups(), self._rates[0]
        return torch.optim.SGD(groups, lr=lr, momentum=self._momentum, nesterov=self._nesterov)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups: weights and vectors of the backbone, weights and vectors of the head."""
        groups: list[dict[str, Any]] = []
        for module, lr in zip((self.classifier.backbone, self.classifier.head), self._rates, strict=True):
            weights, vectors = split_by_dimension(module)
            groups += [
                {"params": weights, "lr": lr, "weight_decay": self._weight_decays[0]},
                {"params": vectors, "lr": lr * self._lr_vectors, "weight_decay": self._weight_decays[1]},
            ]
        return [group for group in groups if group["params"]]


def top1_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the top-1 accuracy of logits [B, C], a scalar without gradient.

    Labels are int64 [B], or class shares [B, C], of which the largest gives the label.
    """
    labels = labels.argmax(1) if labels.is_floating_point() else labels
    return (logits.detach().argmax(1) == labels).float().mean()


def read_accuracy(run: Path) -> dict[str, Accuracy]:
    """Read the accuracies of a run by kind of weights ("raw", "ema"); empty if the run measured none.

    Raises:
        UserError: accuracy.json is damaged.
    """
    path = run / ACCURACY_NAME
    if not path.is_file():
        return {}
    try:
        return {name: Accuracy(**values) for name, values in parse_json(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"accuracy: {path} is not a run's accuracy ({error}); repeat the run") from error
