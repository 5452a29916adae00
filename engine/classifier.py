"""A backbone with a linear classifier: the network that every recipe with labels trains and leaves behind.

classifier.safetensors       the weights as trained
classifier-ema.safetensors   their moving average, where the recipe keeps one
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import safetensors.torch
from torch import Tensor, nn

from engine.files import sync_file
from engine.networks import METADATA_KEY, build_backbone, load_backbone, read_metadata
from engine.weights import write_tensors
from loaders.errors import UserError

Weights = Literal["ema", "raw"]
FILE_NAMES: dict[Weights, str] = {"ema": "classifier-ema.safetensors", "raw": "classifier.safetensors"}


class Classifier(nn.Module):
    """Maps views [B, 3, H, W] to logits [B, C]."""

    def __init__(self, backbone: nn.Module, backbone_name: str, resolution: int, num_classes: int) -> None:
        """Put a new linear classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: as `build_backbone` takes it.
            resolution: side of the views that the backbone was built for.
            num_classes: C.
        """
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]
        self.backbone_name, self.resolution, self.num_classes = backbone_name, resolution, num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def build_classifier(
    backbone_name: str, resolution: int, num_classes: int, init: Path | None = None, keep_head: bool = False
) -> Classifier:
    """Build a classifier, from random weights or from what a run left.

    Args:
        backbone_name: `tiny_resnet`, `wrn_28_2` or any timm name; must be that of `init`.
        resolution: side of the views in pixels.
        num_classes: C.
        init: run folder to start from: its averaged classifier, else its classifier, else its backbone.
        keep_head: start with the classifier layer of `init` too; else that layer is new.

    Raises:
        UserError: `init` holds another backbone, other classes, or no classifier to keep.
    """
    if init is None:
        if keep_head:
            raise UserError("keep_head: expected --init, whose classifier to keep, found none")
        backbone = build_backbone(backbone_name, resolution)
        return Classifier(backbone, backbone_name, resolution, num_classes)
    weights = best_weights(init)
    if weights is None:
        backbone, found = load_backbone(init), read_metadata(init / "backbone.safetensors")["backbone"]
        if keep_head:
            raise UserError(
                f"keep_head: expected a classifier in {init}, found a backbone alone; leave it out"
            )
        start = None
    else:
        start = load_classifier(init, weights)
        backbone, found = start.backbone, start.backbone_name
    if found != backbone_name:
        raise UserError(
            f"backbone: expected {found}, that of --init {init}, found {backbone_name}; change one"
        )
    classifier = Classifier(backbone, backbone_name, resolution, num_classes)
    if keep_head and start is not None:
        if start.num_classes != num_classes:
            raise UserError(
                f"classes: expected {num_classes}, found {start.num_classes} in {init}; leave out --keep-head"
            )
        classifier.head.load_state_dict(start.head.state_dict())
    return classifier.train()


def best_weights(run: Path) -> Weights | None:
    """Return which weights to go on from: the average, else the trained ones; None where there are none."""
    kinds: tuple[Weights, ...] = ("ema", "raw")
    return next((kind for kind in kinds if (run / FILE_NAMES[kind]).is_file()), None)


def save_classifier(run: Path, classifier: Classifier, weights: Weights) -> Path:
    """Write a classifier into a run folder, atomically; equal weights make equal files."""
    final = run / FILE_NAMES[weights]
    temporary = run / f".{FILE_NAMES[weights]}.tmp"
    described = {
        "backbone": classifier.backbone_name,
        "resolution": str(classifier.resolution),
        "num_classes": str(classifier.num_classes),
    }
    write_tensors(temporary, classifier.state_dict(), {METADATA_KEY: json.dumps(described, sort_keys=True)})
    temporary.replace(final)
    sync_file(run)
    return final


def find_classifier(run: Path, num_classes: int, weights: Weights | None = None) -> Classifier:
    """Load the classifier of a run, as `load_classifier` does, for a pack of so many classes.

    Args:
        run: run folder.
        num_classes: of the pack that it is to classify.
        weights: which; by default the average where the run has one.

    Raises:
        UserError: no classifier there, or one of another number of classes.
    """
    chosen = weights or best_weights(run)
    if chosen is None:
        raise UserError(f"classifier: expected one in {run}, found none; train with labels first")
    network = load_classifier(run, chosen)
    if network.num_classes != num_classes:
        raise UserError(
            f"classes: expected {network.num_classes}, those of {run}, found {num_classes} in the pack; give "
            "the pack of the training"
        )
    return network


def load_classifier(run: Path, weights: Weights) -> Classifier:
    """Rebuild a classifier that a run left, on the CPU, in evaluation mode.

    Raises:
        UserError: no such file, or not one of ours.
    """
    file = run / FILE_NAMES[weights]
    if not file.is_file():
        raise UserError(f"classifier: expected {file}, found none; finish a run with labels first")
    described = read_metadata(file)
    if not {"backbone", "resolution", "num_classes"} <= described.keys():
        raise UserError(f"classifier: {file} does not describe its network; expected a file that a run wrote")
    resolution = int(described["resolution"])
    backbone = build_backbone(described["backbone"], resolution)
    classifier = Classifier(backbone, described["backbone"], resolution, int(described["num_classes"]))
    classifier.load_state_dict(safetensors.torch.load_file(file))
    return classifier.eval()
