"""Class probabilities of the images of a loader, batch by batch, and the accuracy and guesses from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.train.bad_rows import read_in_order
from engine.train.distributed import all_reduce_sum
from loaders.batch import Batch, Loader


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network for a batch of images, on the CPU.

    Attributes:
        by_view: float32 [V, B, C], class probabilities for each view; rows sum to 1.
        labels: int64 [B], -1 where an image has no label.
        index: int64 [B], rows of the pack.
    """

    by_view: Tensor
    labels: Tensor
    index: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Mean over the views, float32 [B, C]."""
        return self.by_view[0] if len(self.by_view) == 1 else self.by_view.mean(0)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each module at the end."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict(
    network: nn.Module, loader: Loader[Batch], device: torch.device | str, out: Path
) -> Iterator[Predictions]:
    """Yield the predictions for all readable images of this rank's share of a loader, batch by batch.

    Args:
        network: maps views of `loader`, such as [B, 3, H, W], to logits [B, C]; on `device`.
        loader: a loader in evaluation mode, with one view or more.
        out: folder in whose `bad_rows.jsonl` images that cannot be read are recorded.
    """
    with evaluation_mode(network):
        for batch in read_in_order(loader, out, device):
            with torch.inference_mode():
                probabilities = [network(x.to(device)).float().softmax(1) for x in batch.views]
                valid = batch.valid
                labels = torch.full_like(batch.index, -1) if batch.labels is None else batch.labels
                kept = valid.to(probabilities[0].device)
                yield Predictions(
                    torch.stack([p[kept] for p in probabilities]).cpu(),
                    labels[valid].cpu(),
                    batch.index[valid].cpu(),
                )


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the labelled images of all ranks; for RotNet, on turned images labelled by rotation.

    `top5` and the fields below it are None if not measured, as in older files or if no image has a label.

    Attributes:
        top1: share of images whose most probable class is the label, in [0, 1]; 0 if there are no images.
        num_images: number of these images.
        top5: share of images whose label is among the five most probable classes (or all, if fewer).
        loss: mean of -log of the right class's probability, taken as at least 1e-12.
        mean_class_top1: mean of `per_class`.
        worst_class: key in `per_class` of the class with the lowest accuracy, the first of equal ones.
        worst_class_top1: accuracy of that class.
        per_class: share of the images of each class that are classified correctly, for the classes that
            occur; by the name of the class, or by its number if it has no name.
    """

    top1: float
    num_images: int
    top5: float | None = None
    loss: float | None = None
    mean_class_top1: float | None = None
    worst_class: str | None = None
    worst_class_top1: float | None = None
    per_class: Mapping[str, float] | None = None


_LEAST_PROBABILITY = 1e-12  # lower bound of the right class's probability, so that the loss stays finite


def measure_accuracy(
    network: nn.Module,
    loader: Loader[Batch],
    device: torch.device,
    out: Path,
    classes: Sequence[str] = (),
) -> Accuracy:
    """Classify the labelled images of a loader; each rank does its share, and all return the joint result.

    Args:
        network, loader, device, out: see `predict`.
        classes: names of the C classes, in the order of the logits.
    """
    # One column per class. Rows: images, right guesses, labels among the first five guesses, sum of the loss.
    counts = torch.zeros(4, 0, dtype=torch.float64)
    for part in predict(network, loader, device, out):
        num_classes = part.probabilities.shape[1]
        if not counts.shape[1]:
            counts = torch.zeros(4, num_classes, dtype=torch.float64)
        known = part.labels >= 0
        labels, probabilities = part.labels[known], part.probabilities[known]
        right = probabilities.topk(min(5, num_classes)).indices == labels.unsqueeze(1)
        own = probabilities.gather(1, labels.unsqueeze(1))[:, 0].double().clamp_min(_LEAST_PROBABILITY)
        found = torch.stack([torch.ones_like(own), right[:, 0].double(), right.sum(1).double(), -own.log()])
        counts.index_add_(1, labels, found)
    return _accuracy(all_reduce_sum(counts.to(device)).cpu(), classes)


def _accuracy(counts: Tensor, classes: Sequence[str]) -> Accuracy:
    """Compute the accuracy from the counts of `measure_accuracy`, float64 [4, C]."""
    num_images, right, among_five, loss = counts.sum(1).tolist()
    shown = max(1.0, num_images)
    occurring = counts[0].nonzero()[:, 0].tolist()
    names = {number: classes[number] if number < len(classes) else str(number) for number in occurring}
    shares = {names[number]: float(counts[1, number] / counts[0, number]) for number in occurring}
    if not shares:
        return Accuracy(0.0, 0)
    worst = min(shares, key=shares.__getitem__)
    return Accuracy(
        top1=right / shown,
        num_images=int(num_images),
        top5=among_five / shown,
        loss=loss / shown,
        mean_class_top1=sum(shares.values()) / len(shares),
        worst_class=worst,
        worst_class_top1=shares[worst],
        per_class=shares,
    )


@dataclass(frozen=True)
class Guesses:
    """The most probable class of each image that is classified with enough confidence.

    Attributes:
        row: int64 [M], rows of the pack, increasing.
        label: int64 [M], the most probable class.
        confidence: float32 [M], its probability.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    confidence: NDArray[np.float32]


def guess_labels(
    network: nn.Module,
    loader: Loader[Batch],
    device: torch.device,
    num_rows: int,
    threshold: float,
    out: Path,
) -> Guesses:
    """Guess the class of every image of a loader; each rank does its share, and all return the joint result.

    Args:
        network, loader, device, out: see `predict`.
        num_rows: number of rows of the pack.
        threshold: least confidence of the guesses that are returned.
    """
    confidences = torch.zeros(num_rows, device=device)
    labels = torch.zeros(num_rows, dtype=torch.int64, device=device)  # the label plus one; 0 for no guess
    for part in predict(network, loader, device, out):
        confidence, label = part.probabilities.max(1)
        sure = confidence >= threshold
        index = part.index[sure].to(device)
        confidences[index] = confidence[sure].to(device)
        labels[index] = label[sure].to(device) + 1
    total_labels, total_confidences = (all_reduce_sum(t).cpu().numpy() for t in (labels, confidences))
    rows = np.flatnonzero(total_labels)
    return Guesses(rows, total_labels[rows] - 1, np.minimum(total_confidences[rows], np.float32(1.0)))
