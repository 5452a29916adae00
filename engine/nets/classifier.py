"""A backbone with a linear classifier: the network that recipes with labels leave.

classifier.safetensors       the weights as trained
classifier-ema.safetensors   the moving average of the weights, if the recipe keeps one

Each file holds the names of its classes and its evaluation view; see `engine.nets.description`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from engine.choices import Weights
from engine.labels.matching import copy_outputs, match_classes, match_unnamed
from engine.nets.backbones import build_backbone, load_backbone, resized
from engine.nets.checkpoints import describe_checkpoint, is_checkpoint, load_checkpoint
from engine.nets.description import (
    Description,
    Origin,
    is_described,
    metadata_of_classifier,
    read_description,
)
from engine.nets.foreign import Foreign, is_foreign, read_foreign
from engine.nets.names import check_same
from engine.nets.weights import write_tensors
from loaders.common.errors import UserError
from loaders.common.files import sync_file
from loaders.views.evaluation import EvaluationView

FILE_NAMES: dict[Weights, str] = {"ema": "classifier-ema.safetensors", "raw": "classifier.safetensors"}


class Classifier(nn.Module):
    """Maps views [B, 3, H, W] to logits [B, C]."""

    def __init__(
        self,
        backbone: nn.Module,
        backbone_name: str,
        view: EvaluationView,
        classes: Sequence[str],
        origin: Origin | None = None,
    ) -> None:
        """Put a new linear classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: name of the network, as `build_backbone` takes it.
            view: evaluation view; the backbone was built for its resolution.
            classes: names of the C classes, in the order of the logits.
            origin: third-party weights with which the backbone's training began; None if they were random.
        """
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.num_features), len(classes))  # type: ignore[arg-type]
        self.backbone_name, self.view, self.classes = backbone_name, view, tuple(classes)
        self.origin = origin

    @property
    def resolution(self) -> int:
        """Side of the views in pixels."""
        return self.view.resolution

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W], or the backbone's features of them [B, D], to logits [B, C]."""
        logits: Tensor = self.head(self.backbone(x) if x.ndim == 4 else x)
        return logits

    def at(self, resolution: int) -> Classifier:
        """Return this classifier, or another with its weights, for views of a resolution, in evaluation mode.

        Raises:
            UserError: the backbone cannot take the resolution.
        """
        if resolution == self.resolution:
            return self.eval()
        backbone = resized(self.backbone, self.backbone_name, resolution)
        view = self.view.at(resolution)
        other = Classifier(backbone, self.backbone_name, view, self.classes, self.origin)
        other.head = self.head
        return other.eval()


def build_classifier(
    backbone_name: str,
    view: EvaluationView,
    classes: Sequence[str],
    init: Path | None = None,
    keep_head: bool = False,
) -> Classifier:
    """Build a classifier with random weights or the weights of a start, possibly at another resolution.

    Args:
        backbone_name: name of the network, as `build_backbone` takes it; must be that of `init`.
        view: evaluation view.
        classes: names of the C classes.
        init: run folder to start from (its averaged classifier, else its classifier, else its backbone), one
            of its checkpoints or weights files, or third-party weights (see `engine.nets.foreign`).
        keep_head: also start with the classifier layer of `init`, matched by the names of classes. Without
            this, and for classes that `init` does not know, the layer is new.

    Raises:
        UserError: `init` cannot be read, or does not fit the backbone, the classes, the resolution or
            `keep_head`.
    """
    if init is None:
        if keep_head:
            raise UserError("keep_head: expected --init with a classifier to keep, found none")
        backbone = build_backbone(backbone_name, view.resolution)
        return Classifier(backbone, backbone_name, view, classes)
    if is_foreign(init):
        return _from_foreign(read_foreign(init, backbone_name), backbone_name, view, classes, keep_head)
    weights, saved = best_weights(init), is_checkpoint(init)
    inside = init / ("backbone.safetensors" if weights is None else FILE_NAMES[weights])
    file = init if init.is_file() else inside
    described = describe_checkpoint(init) if saved else read_description(file)
    check_same(described.backbone, backbone_name, init)
    if described.num_classes == 0:
        if keep_head:
            found = "a checkpoint, which names no classes" if saved else "only a backbone"
            raise UserError(f"keep_head: expected a classifier in {init}, found {found}; leave it out")
        side = view.resolution
        backbone = load_checkpoint(init, side) if saved else load_backbone(file, side)
        return Classifier(backbone, backbone_name, view, classes, described.origin).train()
    numbers = _match(described, classes, init, "leave out --keep-head") if keep_head else None
    start = load_classifier(init, weights or "raw", view.resolution)
    classifier = Classifier(start.backbone, backbone_name, view, classes, described.origin)
    if numbers is not None:
        copy_outputs(start.head, classifier.head, numbers)
    return classifier.train()


def _from_foreign(
    foreign: Foreign, backbone_name: str, view: EvaluationView, classes: Sequence[str], keep_head: bool
) -> Classifier:
    source = Path(foreign.source)
    classifier = Classifier(foreign.build(view.resolution), backbone_name, view, classes, foreign.origin)
    if keep_head:
        start = foreign_classifier(foreign)
        numbers = match_classes(start.classes, classes, source, "leave out --keep-head")
        copy_outputs(start.head, classifier.head, numbers)
    return classifier.train()


def foreign_classifier(foreign: Foreign) -> Classifier:
    """Build the classifier that comes with third-party weights, in evaluation mode, on the CPU.

    Raises:
        UserError: the weights have no linear classifier, or do not fit the network.
    """
    head = foreign.head()
    if head is None:
        raise UserError(
            f"classifier: expected one in {foreign.source}, found only a backbone; train one on labels"
        )
    weight, bias = head
    names = foreign.classes or ()
    if len(names) != len(weight):
        names = tuple(f"class {number}" for number in range(len(weight)))
    backbone = foreign.build(foreign.view.resolution)
    classifier = Classifier(backbone, foreign.backbone, foreign.view, names, foreign.origin)
    if classifier.head.weight.shape != weight.shape:
        raise UserError(
            f"classifier: expected weights {list(classifier.head.weight.shape)} in {foreign.source}, found "
            f"{list(weight.shape)}; use its backbone"
        )
    classifier.head.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return classifier.eval()


def best_weights(run: Path) -> Weights | None:
    """Return which classifier of a run to use: the averaged, else that as trained; None if it has none."""
    kinds: tuple[Weights, ...] = ("ema", "raw")
    return next((kind for kind in kinds if (run / FILE_NAMES[kind]).is_file()), None)


def has_classifier(start: Path) -> bool:
    """Return whether a run, or a weights file of this project, holds a classifier."""
    if start.is_file() and is_described(start):
        return read_description(start).num_classes > 0
    return best_weights(start) is not None


def save_classifier(run: Path, classifier: Classifier, weights: Weights) -> Path:
    """Write a classifier into a run folder, atomically; equal weights make equal files."""
    final = run / FILE_NAMES[weights]
    temporary = run / f".{FILE_NAMES[weights]}.tmp"
    described = (classifier.backbone_name, classifier.view, classifier.classes, classifier.origin)
    write_tensors(temporary, classifier.state_dict(), metadata_of_classifier(*described))
    temporary.replace(final)
    sync_file(run)
    return final


def find_classifier(
    run: Path,
    classes: Sequence[str] | None,
    weights: Weights | None = None,
    every_class: bool = False,
    backbone: str | None = None,
) -> Classifier:
    """Load the classifier of a run, like `load_classifier`, to predict the classes of a pack.

    Args:
        run: run folder or classifier's file, or third-party weights that come with a classifier.
        classes: classes of the pack; output c of the result is the class `classes[c]`. A class that the
            classifier does not know has probability 0; the softmax leaves out classes that the pack lacks.
            None keeps the classifier's own classes.
        weights: which weights; by default the averaged ones if the run has them.
        every_class: refuse a classifier that does not know every class, since its pseudo-labels would miss
            the others.
        backbone: name of the network, for a weights file that does not state it.

    Raises:
        UserError: no classifier can be read, or its classes are unknown or do not match; see `match_classes`.
    """
    if is_foreign(run):
        network = foreign_classifier(read_foreign(run, backbone))
        described = Description(network.backbone_name, network.view, network.classes, network.num_classes)
    else:
        chosen = weights or best_weights(run)
        file = run if run.is_file() else run / FILE_NAMES[chosen or "raw"]
        if chosen is None and not run.is_file():
            raise UserError(f"classifier: expected one in {run}, found none; train with labels first")
        network, described = load_classifier(run, chosen or "raw"), read_description(file)
    if classes is None:
        if described.classes is None:
            raise UserError(f"classes: {run} does not name its classes; give a pack that names them")
        return network
    numbers = _match(described, classes, run, "give the pack of the training")
    if every_class and -1 in numbers:
        raise UserError(
            f"classes: expected a classifier of all {len(classes)} in the pack, found one of "
            f"{described.num_classes} in {run}; train on labels of the others first"
        )
    if numbers == list(range(network.num_classes)):
        network.classes = tuple(classes)
        return network
    arranged = Classifier(network.backbone, network.backbone_name, network.view, classes, network.origin)
    nn.init.zeros_(arranged.head.weight)
    nn.init.constant_(arranged.head.bias, -math.inf)
    copy_outputs(network.head, arranged.head, numbers)
    return arranged.eval()


def load_classifier(run: Path, weights: Weights, resolution: int | None = None) -> Classifier:
    """Rebuild a classifier that a run left, on the CPU, in evaluation mode.

    Args:
        run: run folder, or a classifier's file.
        weights: which weights of the folder.
        resolution: side of the views in pixels; by default the one it was trained with.

    Raises:
        UserError: the file does not exist or holds no classifier of this project, or the network cannot take
            the resolution.
    """
    file = run if run.is_file() else run / FILE_NAMES[weights]
    described = read_description(file)
    if described.num_classes == 0:
        raise UserError(
            f"classifier: {file} holds no classifier; expected a file that a run with labels wrote"
        )
    tensors, prefix = safetensors.torch.load_file(file), "backbone."
    view = described.view if resolution is None else described.view.at(resolution)
    backbone = build_backbone(
        described.backbone,
        view.resolution,
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)},
    )
    names = described.classes or tuple(f"class {number}" for number in range(described.num_classes))
    classifier = Classifier(backbone, described.backbone, view, names, described.origin)
    classifier.head.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
    return classifier.eval()


def _match(described: Description, classes: Sequence[str], run: Path, remedy: str) -> list[int]:
    if described.classes is None:
        return match_unnamed(described.num_classes, classes, run, remedy)
    return match_classes(described.classes, classes, run, remedy)
