"""Doubtful labels and unusual images of a pack, found by stored features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs import Pack

_SHOWN_KINDS = 16


@dataclass(frozen=True)
class Judged:
    """Rows of a pack with doubtful labels, or with images unlike every class.

    Attributes:
        doubted: int64 [D], rows of labelled images whose nearest neighbours vote for another class, the most
            doubtful first.
        guess: int64 [D], the class that the neighbours of each of these rows vote for.
        num_labelled: number of labelled images that were judged.
        far: int64 [U], rows of unlabelled images that are unlike every class, the farthest first.
        num_others: number of unlabelled images that were judged.
    """

    doubted: NDArray[np.int64]
    guess: NDArray[np.int64]
    num_labelled: int
    far: NDArray[np.int64]
    num_others: int

    @property
    def said_of_labels(self) -> str:
        """Sentence that states how many labels are doubted."""
        return (
            f"{len(self.doubted):,} of {self.num_labelled:,} labels may be wrong: the most similar other "
            "images have another label."
        )

    @property
    def said_of_others(self) -> str:
        """Sentence that states how many images are unlike every class."""
        return (
            f"{len(self.far):,} of {self.num_others:,} images without a label are unlike every class: less "
            "similar to each class than 95 % of its own images."
        )

    def by_kind(self, labels: NDArray[np.int64]) -> list[tuple[tuple[int, int], NDArray[np.int64]]]:
        """Return the doubted rows for each pair of label and guess: at most 16 pairs, most frequent first.

        Args:
            labels: int64 [N], label of each row of the pack.
        """
        kinds: dict[tuple[int, int], list[int]] = {}
        for row, guess in zip(self.doubted.tolist(), self.guess.tolist(), strict=True):
            kinds.setdefault((int(labels[row]), guess), []).append(row)
        most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:_SHOWN_KINDS]
        return [(kind, np.array(rows, np.int64)) for kind, rows in most]


def judge(pack: Pack, folders: Sequence[Path]) -> Judged | None:
    """Judge the images of a pack by stored features; return None if no folder is given.

    Args:
        folders: folders of runs or results that may hold features; the first one with features of this pack
            is used.

    Raises:
        UserError: no folder holds features of this pack.
    """
    if not folders:
        return None
    import torch

    from engine.evaluate.doubts import doubted_labels, unlike_every_class
    from engine.evaluate.feature_store import read_stored

    found = next((stored for folder in folders if (stored := read_stored(folder, pack)) is not None), None)
    if found is None:
        raise UserError(
            f"features: expected some of the pack {pack.path}, found none in {', '.join(map(str, folders))}; "
            f"make them: python tools/near_copies.py --pack {pack.path} --init START --out {folders[0]}"
        )
    h, rows = found
    known = torch.from_numpy(pack.labels.dense(len(pack))[rows])
    labelled, others = (torch.nonzero(chosen).flatten() for chosen in (known >= 0, known < 0))
    of_labelled, classes = h[labelled], len(pack.classes)
    doubts = doubted_labels(of_labelled, known[labelled], classes)
    unlike = unlike_every_class(of_labelled, known[labelled], classes, h[others])
    return Judged(
        rows[labelled.numpy()[doubts.place]],
        doubts.guess,
        doubts.num_judged,
        rows[others.numpy()[unlike.place]],
        unlike.num_judged,
    )
