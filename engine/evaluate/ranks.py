"""Images ranked by their probability of each class, and the number of guesses that reach a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_RANKED = 625  # images per class, as in Zhou, Wan, Li 2021, section 4.5
_LISTED = (1, 10, 50, 100, 200, 400, 625)


@dataclass(frozen=True)
class Ranked:
    """The K images to which a classifier gives the highest probability of each class, the likeliest first.

    Attributes:
        place: int64 [C, K], positions among the N images.
        label: int64 [C, K], labels of those images, -1 for no label.
        count: int64 [C], number of images labelled with each class.
        reach: int64 [C], estimated number of images of each class among all N, labelled or not, at most K;
            K for a class without labelled images.
    """

    place: NDArray[np.int64]
    label: NDArray[np.int64]
    count: NDArray[np.int64]
    reach: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the label of each ranked image is the class, bool [C, K]."""
        return np.asarray(self.label == np.arange(len(self.label))[:, None])

    def precision(self) -> NDArray[np.float64]:
        """Return the precision at each rank k, float64 [C, K].

        This is the share of right images among the labelled of the first k; NaN if none of the k has a label.
        """
        known = np.cumsum(self.label >= 0, 1)
        return np.where(known > 0, np.cumsum(self.right, 1) / np.maximum(known, 1), np.nan)

    def within_reach(self) -> NDArray[np.float64]:
        """Return `precision` with NaN beyond the reach of each class, float64 [C, R].

        R is the largest reach of a class that has labelled images.
        """
        most = int(self.reach[self.count > 0].max(initial=0))
        places = np.arange(1, most + 1)
        return np.where(places <= self.reach[:, None], self.precision()[:, :most], np.nan)

    def at_own_size(self) -> NDArray[np.float64]:
        """Return the R-precision, float64 [C]: the precision at the rank that equals `count`, at most K.

        It is NaN if no image of the class, or no image up to this rank, has a label; else 1 if the classifier
        ranks all images of the class before all others.
        """
        last = np.clip(self.count, 1, self.place.shape[1]) - 1
        found = self.precision()[np.arange(len(last)), last]
        return np.where(self.count > 0, found, np.nan)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of `rows`."""
        return ("class", "images", *(f"at {k}" for k in self._ranks()), "at own size")

    def rows(self, classes: Sequence[str]) -> list[tuple[str, int, list[float]]]:
        """Return the name, the `count` and the precisions of each class that has labelled images.

        At ranks beyond the reach of a class, precision is NaN: there, even a perfect classifier's would fall.
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
    """Rank images by their probability of each class; ties keep the order of the images.

    Args:
        probabilities: float32 [N, C].
        label: int64 [N], -1 for an image without a label.
        most: maximum number of images per class; K is the smaller of this and N.
    """
    num_images, num_classes = probabilities.shape
    kept = min(most, num_images)
    place = np.empty((num_classes, kept), np.int64)
    for number in range(num_classes):  # sorting all columns at once would take several times the memory
        place[number] = np.argsort(-probabilities[:, number], kind="stable")[:kept]
    count = np.bincount(label[label >= 0], minlength=num_classes)
    # Images without labels are assumed to have the classes in the same shares as those with labels.
    expected = -(-count * num_images // max(1, int(count.sum())))
    return Ranked(place, label[place], count, np.where(count > 0, np.minimum(expected, kept), kept))


def passing(
    confidence: NDArray[np.float32], guess: NDArray[np.int64], num_classes: int, threshold: float
) -> NDArray[np.int64]:
    """Return the number of pseudo-labels of each class, int64 [C]: guesses of at least a given confidence."""
    return np.bincount(guess[confidence >= threshold], minlength=num_classes)
