"""How well a classifier does, from its probabilities: accuracies, confusions and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluate.representations import topk_accuracy
from engine.report.figures import draw_picture, dress
from engine.report.names import drawn_names
from engine.report.page import Picture
from engine.report.theme import Palette

MOST_NAMED = 40  # classes; the names of more classes would overlap
MOST_COUNTED = 12  # classes; the counts of more would be too small to read
_MOST_CELLS = 500  # rows of a picture; with more classes, several share a cell
_MOST_ORDERED = 300
NUM_BINS = 15  # bins of the calibration, as in Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """Mean confidence and accuracy of images in bins of confidence; the bins have equal width.

    Attributes:
        confidence: mean confidence in each bin that holds an image.
        accuracy: share of the bin's images that are classified correctly.
        count: number of the bin's images.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |confidence - accuracy| over the bins, weighted by `count`.

        Source: Guo et al. 2017, equation 3.
        """
        return float(np.average(abs(self.confidence - self.accuracy), weights=self.count))


@dataclass(frozen=True)
class ClassificationReport:
    """Measures of a classifier on labelled images; accuracies are shares in [0, 1].

    Attributes:
        num_images: labelled images.
        top1: share of images whose most probable class is right.
        top5: share of images whose class is one of the five most probable, with a probability above 0.
        mean_class_top1: mean of `per_class` over the classes that have images.
        calibration_error: expected calibration error with 15 bins (Guo et al. 2017).
        log_loss: mean of -log of the right class's probability, taken as at least 1e-12.
        per_class: float64 [C], top1 among the images of each class; NaN for a class without images.
        confusion: int64 [C, C], number of images of class i (row) predicted as class j (column).
        reliability: the bins from which the calibration error is computed.
    """

    num_images: int
    top1: float
    top5: float
    mean_class_top1: float
    calibration_error: float
    log_loss: float
    per_class: NDArray[np.float64]
    confusion: NDArray[np.int64]
    reliability: Reliability

    def figures(self) -> dict[str, Any]:
        """Return the scalar measures in JSON types."""
        names = ("num_images", "top1", "top5", "mean_class_top1", "calibration_error", "log_loss")
        return {name: getattr(self, name) for name in names}


def classification_report(probabilities: Tensor, labels: Tensor) -> ClassificationReport:
    """Compare predicted class probabilities with labels.

    Args:
        probabilities: float32 [N, C], rows sum to 1; N of at least 1.
        labels: int64 [N], in [0, C).

    Raises:
        ValueError: no images, or a probability that is not finite.
    """
    if len(labels) == 0 or not torch.isfinite(probabilities).all():
        raise ValueError("classification report: expected one image or more and finite probabilities")
    num_classes = probabilities.shape[1]
    called = torch.bincount(labels * num_classes + probabilities.argmax(1), minlength=num_classes**2)
    confusion = called.view(num_classes, num_classes).numpy()
    counts = confusion.sum(1)
    per_class = np.where(counts > 0, np.diag(confusion) / np.maximum(counts, 1), np.nan)
    bins = reliability(probabilities, labels)
    right = probabilities.gather(1, labels[:, None])[:, 0].double()
    return ClassificationReport(
        num_images=len(labels),
        top1=float(np.trace(confusion) / len(labels)),
        top5=topk_accuracy(probabilities, labels, min(5, num_classes)),
        mean_class_top1=float(np.nanmean(per_class)),
        calibration_error=bins.error,
        log_loss=float(-right.clamp_min(1e-12).log().mean()),
        per_class=per_class,
        confusion=confusion,
        reliability=bins,
    )


def reliability(probabilities: Tensor, labels: Tensor) -> Reliability:
    """Sort images into 15 bins by confidence, the highest probability, and leave out empty bins."""
    confidence, guess = (t.numpy() for t in probabilities.max(1))
    right = guess == labels.numpy()
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    held = count > 0
    sums = [np.bincount(bins, values, NUM_BINS)[held] / count[held] for values in (confidence, right)]
    return Reliability(sums[0], sums[1], count[held].astype(np.int64))


def draw_reliability(found: Reliability, caption: str = "") -> Picture:
    """Draw accuracy over confidence, beside the line where both are equal."""

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.add_subplot(1, 1, 1)
        axes.plot([0, 1], [0, 1], color=palette.rule, linewidth=1.0)
        axes.plot(found.confidence, found.accuracy, color=palette.accent, marker="o", markersize=4.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence", fontsize=8, color=palette.muted)
        axes.set_title("accuracy", loc="left", fontsize=9, color=palette.ink)
        dress(axes, palette)

    return draw_picture(draw, (4.2, 3.6), "Accuracy over confidence", caption)


def cluster_order(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an order of the classes, int64 [C], in which classes that are often confused are neighbours.

    It is the order of the leaves of a hierarchical clustering of the classes by average linkage.
    """
    if len(confusion) < 3:
        return np.arange(len(confusion))
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    distance = 1.0 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, "average")
    if len(confusion) <= _MOST_ORDERED:  # `optimal_leaf_ordering` takes cubic time
        tree = optimal_leaf_ordering(tree, condensed)
    order: NDArray[np.int64] = leaves_list(tree).astype(np.int64)
    return order


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], caption: str = "") -> Picture:
    """Draw the share of each class's images (rows) that were predicted as each class (columns).

    With up to 12 classes, each cell also states its number of images. With more than 500, each cell shows the
    largest share in a square of neighbouring classes.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    names = drawn_names(classes if len(classes) <= MOST_NAMED else ())
    counted = confusion if len(classes) <= MOST_COUNTED else confusion[:0]
    pool = -(-len(classes) // _MOST_CELLS)
    if pool > 1:
        side = -(-len(classes) // pool) * pool
        padded = np.zeros((side, side))
        padded[: len(classes), : len(classes)] = shares
        shares = padded.reshape(side // pool, pool, side // pool, pool).max((1, 3))
        caption = f"{caption} A cell is the largest share of {pool} x {pool} classes."

    def draw(figure: Any, palette: Palette) -> None:
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm

        colors = LinearSegmentedColormap.from_list("accent", [palette.card, palette.accent])
        axes = figure.add_subplot(1, 1, 1)
        # Colours follow the square root of a share, so that a few images among many are visible.
        count = len(classes)
        extent = None if names.texts else (0, count, count, 0)  # so that ticks count classes, not cells
        norm = PowerNorm(0.5, 0, 1)
        axes.imshow(shares, cmap=colors, norm=norm, interpolation="nearest", extent=extent)
        if names.texts:
            axes.set_xticks(range(len(classes)), names.texts, rotation=90, fontsize=7)
            axes.set_yticks(range(len(classes)), names.texts, fontsize=7)
        for (row, column), number in np.ndenumerate(counted):
            color = palette.card if shares[row, column] > 0.25 else palette.ink
            axes.text(column, row, f"{number:,}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xlabel("taken for", fontsize=8, color=palette.muted)
        axes.set_ylabel("class", fontsize=8, color=palette.muted)
        dress(axes, palette)
        axes.grid(False)

    side_inches = 5.2 if len(classes) <= MOST_NAMED else 8.0
    return draw_picture(draw, (side_inches, side_inches - 0.2), "Confusion matrix", caption, names)
