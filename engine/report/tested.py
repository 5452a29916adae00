"""Predictions of a run's network for images of a pack, which pages show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.device import device_of_process
from engine.evaluate.collapse import spaced
from engine.evaluate.predict import predict
from engine.evaluate.representations import extract_features
from engine.nets.backbones import resized
from engine.nets.classifier import best_weights, find_classifier
from engine.nets.starts import find_start
from loaders.classification import build_rows_loader
from loaders.options import LoaderOptions
from loaders.packs import Pack
from loaders.views.evaluation import EvaluationView

MOST_TESTED, MOST_MAPPED = 4000, 1000


@dataclass(frozen=True)
class Tested:
    """Predictions of a network for images of a split: all images, or evenly spaced ones that have labels.

    Attributes:
        split: name of the split.
        num_labelled: number of labelled images of the split, of which the N are some or all; or N, if all
            images were taken.
        row: int64 [N], rows of the pack.
        label: int64 [N], -1 for an image without a label, which occurs only if all images are taken.
        probabilities: float32 [N, C]; None for a run without a classifier.
        mapped: int64 [M], positions, among the N images, of the M whose features were computed.
        features: float32 [M, D], backbone outputs for those M images.
    """

    split: str
    num_labelled: int
    row: NDArray[np.int64]
    label: NDArray[np.int64]
    probabilities: Tensor | None
    mapped: NDArray[np.int64]
    features: NDArray[np.float32]

    def only(self, kept: NDArray[np.bool_]) -> Tested:
        """Return the predictions for the images that `kept`, bool [N], selects, without features."""
        assert self.probabilities is not None
        none, scores = self.mapped[:0], self.probabilities[torch.from_numpy(kept)]
        return Tested(
            self.split, int(kept.sum()), self.row[kept], self.label[kept], scores, none, self.features[:0]
        )


def look_at_split(run: Path, pack: Pack, split: str, most: int = MOST_TESTED) -> Tested | None:
    """Apply a run's network to labelled images of a split; return None if the split has none.

    Args:
        run: run folder with a classifier or a backbone.
        pack: pack that holds the images.
        split: name of the split.
        most: maximum number of images.

    Raises:
        UserError: there is no such split, the network cannot be read, or its classes do not match the pack's.
    """
    whole = pack.split(split)
    labels = whole.labels()
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        return None
    chosen = known[spaced(len(known), most).numpy()]
    device = device_of_process()
    options = LoaderOptions(device=device, channels_last=True)
    probabilities: Tensor | None = None
    view: EvaluationView
    backbone: nn.Module
    if best_weights(run) is not None:
        classifier = find_classifier(run, pack.classes).to(device)
        view, backbone = classifier.view, classifier.backbone
        with build_rows_loader(pack, np.sort(whole.rows(chosen)), view, options) as loader:
            parts = list(predict(classifier, loader, device, run))
        probabilities = torch.cat([part.probabilities for part in parts])
        rows, found = (torch.cat([getattr(p, name) for p in parts]).numpy() for name in ("index", "labels"))
    else:
        start = find_start(run)
        view = start.view
        backbone = resized(start.load(), start.backbone, view.resolution).to(device)
        rows, found = whole.rows(chosen), labels[chosen]
    mapped = spaced(len(rows), MOST_MAPPED).numpy()
    with build_rows_loader(pack, np.sort(rows[mapped]), view, options) as loader:
        features = extract_features(backbone, loader, device, run)
    place = {row: number for number, row in enumerate(rows.tolist())}
    order = np.array([place[row] for row in features.index.tolist()], np.int64)
    return Tested(split, len(known), rows, found, probabilities, order, features.h.numpy())
