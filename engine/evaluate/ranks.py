"""Images in the order of their probability of a class, and how many of each class pass a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_RANKED = 625  # per class, in Zhou, Wan, Li 2021, section 4.5
_LISTED = (1, 10, 50, 100, 200, 400, 625)


@dataclass(frozen=True)
class Ranked:
    """The K images that a classifier finds likeliest of each class, the likeliest first.

    Attributes:
        place: int64 [C, K], positions among the N images.
        label: int64 [C, K], their labels, -1 where there is none.
        count: int64 [C], images of each class among the N.
        reach: int64 [C], images of each class expected among all N, K at most; K where a class has none.
    """

    place: NDArray[np.int64]
    label: NDArray[np.int64]
    count: NDArray[np.int64]
    reach: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each is of the class, bool [C, K]."""
        return np.asarray(self.label == np.arange(len(self.label))[:, None])

    def precision(self) -> NDArray[np.float64]:
        """Return the share of right ones among the first k with labels, float64 [C, K]; NaN of none."""
        known = np.cumsum(self.label >= 0, 1)
        return np.where(known > 0, np.cumsum(self.right, 1) / np.maximum(known, 1), np.nan)

    def within_reach(self) -> NDArray[np.float64]:
        """Return `precision` up to the largest reach of a class with images, NaN beyond each class's own."""
        most = int(self.reach[self.count > 0].max(initial=0))
        places = np.arange(1, most + 1)
        return np.where(places <= self.reach[:, None], self.precision()[:, :most], np.nan)

    def at_own_size(self) -> NDArray[np.float64]:
        """Return the precision at rank k = images of the class, or at K, float64 [C] (R-precision).

        NaN where the class has no image. 1 where the classifier ranks its images before all others.
        """
        last = np.clip(self.count, 1, self.place.shape[1]) - 1
        found = self.precision()[np.arange(len(last)), last]
        return np.where(self.count > 0, found, np.nan)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of `rows`."""
        return ("class", "images", *(f"at {k}" for k in self._ranks()), "at own size")

    def rows(self, classes: Sequence[str]) -> list[tuple[str, int, list[float]]]:
        """Return the name, images, precision at some ranks and at its own size of each class with images.

        Ranks beyond the reach of a class are NaN: precision would fall there whatever the classifier says.
        """
        precision, own = self.within_reach(), self.at_own_size()
        return [
            (
                classes[i],
                int(self.count[i]),
                [*(float(precision[i, k - 1]) for k in self._ranks()), float(own[i])],
            )
            for i in map(int, np.flatnonzero(self.count > 0))
        ]

    def _ranks(self) -> list[int]:
        return [k for k in _LISTED if k <= self.reach[self.count > 0].max(initial=0)]


def rank_images(
    probabilities: NDArray[np.float32], label: NDArray[np.int64], most: int = MOST_RANKED
) -> Ranked:
    """Rank images by their probability of each class; of equals the first.

    Args:
        probabilities: float32 [N, C].
        label: int64 [N], -1 where there is none.
        most: K, images per class at most.
    """
    num_images, num_classes = probabilities.shape
    kept = min(most, num_images)
    place = np.empty((num_classes, kept), np.int64)
    for number in range(num_classes):  # one column at a time: all of them sorted would double the memory
        place[number] = np.argsort(-probabilities[:, number], kind="stable")[:kept]
    count = np.bincount(label[label >= 0], minlength=num_classes)
    # Counting those expected among the images without label.
    expected = -(-count * num_images // max(1, int(count.sum())))
    return Ranked(place, label[place], count, np.where(count > 0, np.minimum(expected, kept), kept))


def passing(
    confidence: NDArray[np.float32], guess: NDArray[np.int64], num_classes: int, threshold: float
) -> NDArray[np.int64]:
    """Return the pseudo-labels of each class, int64 [C]: guesses whose confidence reaches a threshold."""
    return np.bincount(guess[confidence >= threshold], minlength=num_classes)
