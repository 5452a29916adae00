"""Sections about images ranked by class: right and wrong images, precision at rank, imbalance of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.evaluate.ranks import passing, rank_images
from engine.report.blocks import Sheet, image_sheet
from engine.report.figures import draw_picture, dress, line_look
from engine.report.names import drawn_names
from engine.report.page import Block, Paragraph, Picture, Section, Table
from engine.report.sections import percent
from engine.report.tested import Tested
from engine.report.theme import Palette
from loaders.packs import Pack

_THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95)
_DRAWN_THRESHOLDS = (0.0, 0.8, 0.95)
_SHOWN_CLASSES, _SHOWN_IMAGES, _MARKED_CLASSES = 2, 12, 12


class RankPages:
    """Makes sections about the images to which a classifier gives the highest probability of each class."""

    def __init__(self, pack: Pack, tested: Tested, classes: Sequence[str]) -> None:
        """Rank the images; `tested.probabilities` must have a column for each of `classes`."""
        assert tested.probabilities is not None
        self.pack, self.tested, self.classes = pack, tested, classes
        scores = tested.probabilities.numpy()
        self.confidence, self.guess = scores.max(1), scores.argmax(1)
        self.ranked = rank_images(scores, tested.label)
        self.has_labels = bool((tested.label >= 0).any())

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the named classes.

        Without names, return the classes with the best and the worst R-precision; if no image has a label
        either, return the classes that are predicted most and least often.
        """
        if names:
            return [self.classes.index(name) for name in names]
        measure = self.ranked.at_own_size()
        if not self.has_labels:
            measure = np.bincount(self.guess, minlength=len(self.classes)).astype(np.float64)
        known = np.flatnonzero(~np.isnan(measure))
        order = known[np.argsort(-measure[known], kind="stable")].tolist()
        return list(dict.fromkeys([*order[:_SHOWN_CLASSES], *order[-_SHOWN_CLASSES:]]))

    def sheets(self, names: Sequence[str] = ()) -> Section:
        """Return sheets of the images with the highest probability of each chosen class.

        Each class has up to three sheets: of right images, of wrong ones, and of those without a label.

        Source: figure 2 of Zhou, Wan, Li 2021.
        """
        blocks: list[Block] = []
        for number in self.chosen(names):
            first = int(self.ranked.reach[number])
            label, right = self.ranked.label[number, :first], self.ranked.right[number, :first]
            kinds = (
                ("right", right),
                ("wrong", (label >= 0) & ~right),
                ("without a label", label < 0),
            )
            for kind, held in kinds:
                places = self.ranked.place[number, :first][held]
                if not len(places):
                    continue
                title = f"{self.classes[number]}: {kind}, {len(places):,} of the first {first:,}"
                blocks.append(self._sheet(title, number, places[:_SHOWN_IMAGES]))
        if blocks:
            said = (
                "The images to which the network gives the highest probability of a class, the surest first."
            )
            blocks.insert(0, Paragraph(said))
        return Section("Right and wrong by rank", blocks)

    def precision(self) -> Section:
        """Return the precision at rank as curves and as a table; an empty section if no image has a label."""
        if not self.has_labels:
            return Section("Precision at rank", [])
        return Section("Precision at rank", [self._curves(), self._table()])

    def imbalance(self, training: NDArray[np.int64] | None, per_class: NDArray[np.float64]) -> Section:
        """Return images per predicted class, and accuracy by number of training labels if numbers differ.

        Args:
            training: int64 [C], number of labels of each class that were trained on; None if unknown.
            per_class: float64 [C], accuracy of each class; NaN for a class without images.
        """
        blocks: list[Block] = [self._guessed(), self._thresholds()]
        known = ~np.isnan(per_class)
        if training is not None and len(np.unique(training[known])) > 1:
            blocks.append(_over_labels(training[known], per_class[known]))
        return Section("Imbalance", blocks)

    def _sheet(self, title: str, number: int, places: NDArray[np.int64]) -> Sheet:
        """Return a sheet of images, each with its label and its probability of the class `number`."""
        assert self.tested.probabilities is not None
        scores = self.tested.probabilities[torch.from_numpy(places), number].tolist()
        labels = (self.classes[label] if label >= 0 else "no label" for label in self.tested.label[places])
        said = [
            f"{name}, probability {100 * score:.0f} %" for name, score in zip(labels, scores, strict=True)
        ]
        return image_sheet(self.pack, title, self.tested.row[places].tolist(), said)

    def _curves(self) -> Picture:
        order = np.argsort(-self.confidence, kind="stable")
        order = order[self.tested.label[order] >= 0]
        hits = (self.guess == self.tested.label)[order]
        right = np.cumsum(hits) / np.arange(1, len(order) + 1)
        precision = self.ranked.within_reach()
        held = np.flatnonzero(self.ranked.count > 0)
        places = np.arange(1, precision.shape[1] + 1)
        chosen = self.chosen(())
        names = drawn_names([self.classes[number] for number in chosen])
        furthest = int(np.median(self.ranked.reach[held]))

        def draw(figure: Any, palette: Palette) -> None:
            left, at_rank = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
            left.plot(np.arange(1, len(right) + 1) / len(right), right, color=palette.accent, linewidth=1.4)
            left.set_xlabel("share of the images, the surest first", fontsize=8, color=palette.muted)
            left.set_title("accuracy", loc="left", fontsize=9, color=palette.ink)
            mean = np.nanmean(precision[held], 0)
            at_rank.plot(places, mean, color=palette.ink, linewidth=1.8, label="mean of the classes")
            for line, (number, name) in enumerate(zip(chosen, names.texts, strict=True)):
                text = f" {name}" if name[:1] == "_" else name
                at_rank.plot(places, precision[number], linewidth=1.1, label=text, **line_look(line, palette))
            at_rank.set_xlabel("rank k", fontsize=8, color=palette.muted)
            at_rank.set_title("precision at rank", loc="left", fontsize=9, color=palette.ink)
            at_rank.legend(frameon=False, fontsize=7, labelcolor=palette.ink, loc="best")
            for axes in (left, at_rank):
                axes.set_ylim(0, 1.03)
                dress(axes, palette)

        caption = (
            "Left: accuracy of the images of which the network is surest. Right: of the k images to which it "
            "gives the highest probability of a class, the share that is of that class: mean, best and worst "
            "classes. A line ends at the rank beyond which no images of its class are expected, or none are "
            f"ranked, {furthest:,} here (median); the mean is of the classes that reach k."
        )
        return draw_picture(draw, (8.6, 3.0), "Accuracy by confidence, and precision at rank", caption, names)

    def _table(self) -> Table:
        rows = [
            (name, f"{count:,}", *("-" if np.isnan(share) else percent(share) for share in shares))
            for name, count, shares in self.ranked.rows(self.classes)
        ]
        caption = "At own size: precision at the rank equal to the class's number of images (R-precision)."
        return Table(self.ranked.columns, rows, caption)

    def _guessed(self) -> Picture:
        counts = {
            f"confidence of at least {threshold:g}" if threshold else "all guesses": self._passing(threshold)
            for threshold in _DRAWN_THRESHOLDS
        }
        if self.has_labels:
            counts["labels"] = self.ranked.count

        def draw(figure: Any, palette: Palette) -> None:
            axes = figure.add_subplot(1, 1, 1)
            ranks = np.arange(1, len(self.classes) + 1)
            for number, (name, count) in enumerate(counts.items()):
                sizes = np.sort(count)[::-1]
                marker = "o" if len(ranks) <= _MARKED_CLASSES else None
                look = {"linewidth": 1.4, "marker": marker, "markersize": 4, **line_look(number, palette)}
                axes.plot(ranks, sizes, label=name, **look)
            axes.set_ylim(0, None)
            axes.locator_params(integer=True)
            axes.set_xlabel("rank of the class; 1 has the most images", fontsize=8, color=palette.muted)
            axes.set_title("number of images of a class", loc="left", fontsize=9, color=palette.ink)
            dress(axes, palette)
            axes.legend(frameon=False, fontsize=7, labelcolor=palette.ink, loc="best")

        caption = (
            "Images per guessed class, which is what pseudo-labels by a threshold would be: a flat line is "
            "balanced. Each line has its own order of the classes."
        )
        return draw_picture(draw, (8.6, 2.8), "Images per guessed class by threshold", caption)

    def _thresholds(self) -> Table:
        known = self.tested.label >= 0
        right = (self.guess == self.tested.label) & known
        rows = []
        for threshold in _THRESHOLDS:
            kept, count = self.confidence >= threshold, self._passing(threshold)
            judged = int((kept & known).sum())
            share = percent((right & kept).sum() / judged) if judged else "-"
            largest = self.classes[int(count.argmax())] if count.any() else "-"
            empty = int((count == 0).sum())
            cells = (f"{threshold:g}", f"{int(count.sum()):,}", share, f"{empty:,}", f"{count.max():,}")
            rows.append((*cells, largest))
        columns = ("least confidence", "images", "right", "classes without", "largest class", "its name")
        return Table(columns, rows, "What a threshold leaves.")

    def _passing(self, threshold: float) -> NDArray[np.int64]:
        return passing(self.confidence, self.guess, len(self.classes), threshold)


def _over_labels(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> Picture:
    """Draw the accuracy of each class over the number of its training labels."""

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.add_subplot(1, 1, 1)
        axes.scatter(np.maximum(counts, 0.5), shares, s=14, color=palette.accent, alpha=0.6, linewidths=0)
        edges = np.quantile(counts, np.linspace(0, 1, min(8, len(counts)) + 1))
        bins = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, len(edges) - 2)
        held = np.unique(bins)
        means = [(np.median(counts[bins == b]), shares[bins == b].mean()) for b in held]
        axes.plot([max(x, 0.5) for x, _ in means], [y for _, y in means], color=palette.second, linewidth=1.4)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("labels of the class that were trained on", fontsize=8, color=palette.muted)
        axes.set_title("accuracy of the class", loc="left", fontsize=9, color=palette.ink)
        dress(axes, palette)

    caption = "One point per class; the line is the mean of classes with about as many labels."
    return draw_picture(draw, (8.6, 2.8), "Accuracy over labels per class", caption)
