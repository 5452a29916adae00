"""The sections of a page about a classifier: accuracy, confusions and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluate.classification_report import (
    ClassificationReport,
    classification_report,
    cluster_order,
    draw_confusion,
    draw_reliability,
)
from engine.report.blocks import Sheet
from engine.report.figures import draw_picture, dress
from engine.report.page import Block, Paragraph, Picture, Section, Table, Tile, Tiles
from engine.report.sections import percent
from engine.report.tested import Tested
from engine.report.theme import Palette
from loaders.packs import Pack
from loaders.packs.images.thumbnail import thumbnail

_WORST_PAIRS = 20
_SHOWN_CLASSES, _SHOWN_IMAGES = 3, 8
_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def interval_text(top1: float, count: int) -> str:
    """Return the 95 % interval of an accuracy in words."""
    low, high = interval(round(top1 * count), count)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} % (Wilson)"


def headline(top1: float, count: int, top5: float | None, mean_class: float | None) -> Section:
    """Return the accuracy that the page shows first."""
    tiles = [Tile(percent(top1), f"accuracy on {count:,} test images", interval_text(top1, count))]
    if top5 is not None:
        tiles.append(Tile(percent(top5), "among the five most probable", ""))
    if mean_class is not None:
        tiles.append(Tile(percent(mean_class), "mean accuracy of the classes", ""))
    return Section("Accuracy", [Tiles(tiles)])


class ClassifierPages:
    """The sections about the predictions of a run."""

    def __init__(self, pack: Pack, tested: Tested) -> None:
        """Measure the predictions; `tested.probabilities` must not be None."""
        import torch

        assert tested.probabilities is not None
        self.pack, self.tested = pack, tested
        self.report: ClassificationReport = classification_report(
            tested.probabilities, torch.from_numpy(tested.label)
        )
        self.confidence, self.guess = (t.numpy() for t in tested.probabilities.max(1))
        self.right = self.guess == tested.label
        shown, whole = len(tested.row), tested.num_labelled
        self.of = f"{shown:,} images of split {tested.split!r}"
        if shown < whole:
            self.of = f"{shown:,} of {whole:,} images of split {tested.split!r}, evenly spaced"

    def confusion(self) -> Section:
        """Return the confusion matrix, with confused classes side by side, and the worst pairs."""
        report, classes = self.report, self.pack.classes
        order = cluster_order(report.confusion)
        names = [classes[i] for i in order]
        matrix = report.confusion[np.ix_(order, order)]
        caption = (
            f"Share of each class's images by the class they are taken for; {self.of}. Classes that are "
        )
        picture = draw_confusion(matrix, names, caption + "taken for each other stand together.")
        counts = report.confusion.sum(1)
        wrong = report.confusion.copy()
        np.fill_diagonal(wrong, 0)
        pairs = np.argsort(-wrong, axis=None, kind="stable")[:_WORST_PAIRS]
        rows = [
            (classes[i], classes[j], f"{wrong[i, j]:,}", percent(wrong[i, j] / counts[i]))
            for i, j in (divmod(int(pair), len(classes)) for pair in pairs)
            if wrong[i, j]
        ]
        blocks: list[Block] = [picture]
        if rows:
            blocks.append(Table(("class", "taken for", "images", "of the class"), rows, "The worst pairs."))
        return Section("What is taken for what", blocks)

    def classes(self, training: NDArray[np.int64] | None) -> Section:
        """Return a table of the classes; `training`, int64 [C], counts the training labels of each."""
        confusion = self.report.confusion
        given = confusion.sum(0)
        rows = []
        for number, name in enumerate(self.pack.classes):
            count = int(confusion[number].sum())
            if not count:
                continue
            recall, taken = self.report.per_class[number], int(given[number])
            precision = percent(confusion[number, number] / taken) if taken else "-"
            labels = () if training is None else (f"{training[number]:,}",)
            rows.append((name, *labels, f"{count:,}", percent(recall), precision))
        columns = ("class", *(() if training is None else ("labels trained on",)), "test images")
        caption = "Click a heading to sort. Accuracy: share of the class's images that are found (recall)."
        return Section("Classes", [Table((*columns, "accuracy", "precision"), rows, caption)])

    def images(self) -> Section:
        """Return the most confident right and wrong images of the best and the worst classes."""
        shares = self.report.per_class
        known = np.flatnonzero(~np.isnan(shares))
        order = known[np.argsort(shares[known], kind="stable")]
        worst = order[:_SHOWN_CLASSES].tolist()
        best = [number for number in order[::-1][:_SHOWN_CLASSES].tolist() if number not in worst]
        blocks: list[Block] = []
        for heading, numbers in (("The worst classes.", worst), ("The best classes.", best)):
            if numbers:
                blocks.append(Paragraph(heading))
            for number in numbers:
                for what, wanted in (
                    ("most sure and wrong", ~self.right),
                    ("most sure and right", self.right),
                ):
                    places = np.flatnonzero((self.tested.label == number) & wanted)
                    places = places[np.argsort(-self.confidence[places], kind="stable")][:_SHOWN_IMAGES]
                    if len(places):
                        name = f"{self.pack.classes[number]}, {percent(shares[number])} right: {what}"
                        blocks.append(self._sheet(name, places.tolist()))
        return Section("Images", blocks)

    def _sheet(self, name: str, places: Sequence[int]) -> Sheet:
        keys = [
            f"{self.pack.key(int(self.tested.row[i]))}: {self.pack.classes[self.guess[i]]}, "
            f"{100 * self.confidence[i]:.0f} % sure"
            for i in places
        ]
        return Sheet(name, [thumbnail(self.pack, int(self.tested.row[i])) for i in places], keys)

    def confidence_section(self) -> Section:
        """Return calibration, and the accuracy of the surest images."""
        error = self.report.calibration_error
        said = f"Expected calibration error {percent(error)}, 15 bins (Guo et al. 2017); {self.of}."
        return Section("How sure it is", [draw_reliability(self.report.reliability, said), self._ranks()])

    def _ranks(self) -> Picture:
        order = np.argsort(-self.confidence, kind="stable")
        right = np.cumsum(self.right[order]) / np.arange(1, len(order) + 1)
        probabilities = self.tested.probabilities
        assert probabilities is not None
        held = np.unique(self.tested.label)
        ranks = [k for k in _RANKS if k <= len(order)]
        scores = probabilities.numpy()
        of_class = np.zeros((len(held), len(ranks)))
        for place, number in enumerate(held.tolist()):
            best = np.argsort(-scores[:, number], kind="stable")[: ranks[-1]]
            hits = np.cumsum(self.tested.label[best] == number)
            of_class[place] = [hits[k - 1] / k for k in ranks]

        def draw(figure: Any, palette: Palette) -> None:
            left, at_rank = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
            left.plot(np.arange(1, len(right) + 1) / len(right), right, color=palette.accent, linewidth=1.4)
            left.set_xlabel("share of the images, the surest first", fontsize=8, color=palette.muted)
            left.set_title("accuracy", loc="left", fontsize=9, color=palette.ink)
            at_rank.plot(ranks, of_class.mean(0), color=palette.accent, marker="o", markersize=3.5)
            at_rank.set_xscale("log")
            at_rank.minorticks_off()
            at_rank.set_xticks(ranks, [str(k) for k in ranks])
            at_rank.set_xlabel("rank k", fontsize=8, color=palette.muted)
            at_rank.set_title(
                "precision at rank, mean of the classes", loc="left", fontsize=9, color=palette.ink
            )
            for axes in (left, at_rank):
                axes.set_ylim(0, 1.03)
                dress(axes, palette)

        caption = (
            "Left: accuracy of the images of which the network is surest. Right: of the k images to which it "
            "gives the highest probability of a class, the share that is of that class; it falls where k "
            "exceeds the images that the class has."
        )
        return draw_picture(draw, (8.6, 2.8), "Accuracy by confidence, and precision at rank", caption)

    def imbalance(self, training: NDArray[np.int64] | None) -> Section:
        """Return the accuracy of each class over its number of training labels, if these numbers differ."""
        if training is None or len(np.unique(training[~np.isnan(self.report.per_class)])) < 2:
            return Section("Imbalance", [])
        known = ~np.isnan(self.report.per_class)
        counts, shares = training[known], self.report.per_class[known]

        def draw(figure: Any, palette: Palette) -> None:
            axes = figure.add_subplot(1, 1, 1)
            axes.scatter(np.maximum(counts, 0.5), shares, s=14, color=palette.accent, alpha=0.6, linewidths=0)
            edges = np.quantile(counts, np.linspace(0, 1, min(8, len(counts)) + 1))
            bins = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, len(edges) - 2)
            held = np.unique(bins)
            means = [(np.median(counts[bins == b]), shares[bins == b].mean()) for b in held]
            axes.plot(
                [max(x, 0.5) for x, _ in means], [y for _, y in means], color=palette.second, linewidth=1.4
            )
            axes.set_xscale("log")
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("labels of the class that were trained on", fontsize=8, color=palette.muted)
            axes.set_title("accuracy of the class", loc="left", fontsize=9, color=palette.ink)
            dress(axes, palette)

        caption = "One point per class; the line is the mean of classes with about as many labels."
        return Section(
            "Imbalance", [draw_picture(draw, (8.6, 2.8), "Accuracy over labels per class", caption)]
        )
