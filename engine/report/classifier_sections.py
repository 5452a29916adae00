"""The sections of a page about a classifier: accuracy, confusions and confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.evaluate.classification_report import (
    MOST_COUNTED,
    MOST_NAMED,
    ClassificationReport,
    classification_report,
    cluster_order,
    draw_confusion,
    draw_reliability,
)
from engine.report.blocks import Sheet, image_sheet
from engine.report.page import Block, Paragraph, Section, Table, Tile, Tiles
from engine.report.sections import percent
from engine.report.tested import Tested
from loaders.packs import Pack

_WORST_PAIRS = 20
_SHOWN_CLASSES, _SHOWN_IMAGES = 3, 8


def interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the share right / count (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def interval_text(top1: float, count: int) -> str:
    """Return the 95 % interval of an accuracy in words."""
    low, high = interval(round(top1 * count), count)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} % (Wilson)"


def headline(top1: float, count: int, top5: float | None, mean_class: float | None) -> Section:
    """Return the accuracies that the page shows first."""
    tiles = [Tile(percent(top1), f"accuracy on {count:,} test images", interval_text(top1, count))]
    if top5 is not None and top5 < 1.0:  # with five classes or fewer it is always 1
        tiles.append(Tile(percent(top5), "among the five most probable", ""))
    if mean_class is not None and percent(mean_class) != percent(top1):
        tiles.append(Tile(percent(mean_class), "mean accuracy of the classes", ""))
    return Section("Accuracy", [Tiles(tiles)])


class ClassifierPages:
    """Makes the sections about predictions for labelled images."""

    def __init__(self, pack: Pack, tested: Tested) -> None:
        """Evaluate the predictions; every image must have probabilities and a label."""
        import torch

        assert tested.probabilities is not None
        self.pack, self.tested, self.classes = pack, tested, pack.classes
        self.report: ClassificationReport = classification_report(
            tested.probabilities, torch.from_numpy(tested.label)
        )
        self.order = cluster_order(self.report.confusion)  # order of the classes in the picture
        self.confidence, self.guess = (t.numpy() for t in tested.probabilities.max(1))
        self.right = self.guess == tested.label
        shown, whole = len(tested.row), tested.num_labelled
        self.of = f"{shown:,} images of split {tested.split!r}"
        if shown < whole:
            self.of = f"{shown:,} of {whole:,} images of split {tested.split!r}, evenly spaced"

    def confusion(self) -> Section:
        """Return the confusion matrix, with often confused classes side by side, and the worst pairs."""
        report, classes = self.report, self.pack.classes
        order = self.order
        names = [classes[i] for i in order]
        matrix = report.confusion[np.ix_(order, order)]
        caption = (
            f"Share of each class's images by the class they are taken for; {self.of}. Classes that are "
            "taken for each other stand together."
        )
        caption += " The numbers count images." if len(names) <= MOST_COUNTED else ""
        picture = draw_confusion(matrix, names, caption)
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

    def per_class(self, training: NDArray[np.int64] | None) -> Section:
        """Return a table of the classes that have test images.

        Args:
            training: int64 [C], number of labels of each class that were trained on; None if unknown.
        """
        confusion = self.report.confusion
        given, place = confusion.sum(0), np.argsort(self.order)
        places = len(self.classes) > MOST_NAMED  # the picture then has no room for names
        rows = []
        for number, name in enumerate(self.pack.classes):
            count = int(confusion[number].sum())
            if not count:
                continue
            recall, taken = self.report.per_class[number], int(given[number])
            precision = percent(confusion[number, number] / taken) if taken else "-"
            labels = () if training is None else (f"{training[number]:,}",)
            where = (f"{place[number]:,}",) if places else ()
            rows.append((name, *labels, f"{count:,}", percent(recall), precision, *where))
        columns = ("class", *(() if training is None else ("labels trained on",)), "test images")
        columns = (*columns, "accuracy", "precision", *(("place in the picture",) if places else ()))
        caption = "Click a heading to sort. Accuracy: share of the class's images that are found (recall)."
        return Section("Classes", [Table(columns, rows, caption)])

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
        said = [f"{self.classes[self.guess[i]]}, {100 * self.confidence[i]:.0f} % sure" for i in places]
        return image_sheet(self.pack, name, self.tested.row[places].tolist(), said)

    def confidence_section(self) -> Section:
        """Return calibration: accuracy over confidence."""
        error = self.report.calibration_error
        said = f"Expected calibration error {percent(error)}, 15 bins (Guo et al. 2017); {self.of}."
        return Section("How sure it is", [draw_reliability(self.report.reliability, said)])
