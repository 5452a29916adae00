"""Choosing a few labels per class, the way semi-supervised results are reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.errors import UserError
from loaders.packs.labels import LabelTable
from loaders.packs.pack import Pack, Split


def subsample_per_class(labels: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Choose k positions of every class that occurs, a pure function of the labels, k and the seed.

    The subsets are nested: with one seed, the choice for k labels is part of the choice for k + 1, so that a
    curve over k differs by the added labels alone.

    Args:
        labels: int64 [N], -1 where a position has no label.
        k: labels per class, at least 1.
        seed: chooses the subset, at least 0.

    Returns:
        Positions, int64 [k * number of classes], increasing.

    Raises:
        UserError: k below 1, no labels at all, or a class with fewer than k images.
    """
    if k < 1:
        raise UserError(f"labels per class: expected at least 1, found {k}")
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if len(classes) == 0:
        raise UserError("labels per class: the split has no labels; give a labelled split")
    if counts.min() < k:
        scarce = classes[counts.argmin()]
        raise UserError(
            f"labels per class: expected at least {k} images of each class, found {counts.min()} of class "
            f"{scarce}; ask for at most {counts.min()}"
        )
    chosen = []
    for label in classes:
        # One generator per class: a class's choice does not move when another class grows.
        generator = np.random.Generator(np.random.Philox(key=[seed, int(label)]))
        chosen.append(generator.permutation(np.flatnonzero(labels == label))[:k])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def few_labels(split: Split, per_class: int | None, seed: int, table: LabelTable | None = None) -> LabelTable:
    """Return a label table of k labels per class of a split.

    Args:
        split: labelled split.
        per_class: k, see `subsample_per_class`; None keeps every label of the split.
        seed: chooses the labels.
        table: where the labels come from; the true labels by default.

    Raises:
        UserError: no labels, or too few of a class.
    """
    known = split.labels(table)
    if per_class is None:
        positions = np.flatnonzero(known >= 0)
        if len(positions) == 0:
            raise UserError(f"split {split.name!r}: expected labels, found none; give a labelled split")
    else:
        positions = subsample_per_class(known, per_class, seed)
    return LabelTable.of(split.rows(positions), known[positions], len(split.pack.classes))


def training_labels(
    pack: Pack, split: str, per_class: int | None, seed: int, extra: Sequence[Path] = ()
) -> LabelTable:
    """Return the labels to train on: some true ones of a split, then those of further tables.

    Args:
        pack: the pack.
        split: labelled split.
        per_class: true labels of each class; None takes all.
        seed: chooses them.
        extra: label tables on disk; where several name a row, the first label stays, true ones before all.

    Raises:
        UserError: no labels, too few of a class, or a table that cannot be read.
    """
    table = few_labels(pack.split(split), per_class, seed)
    for path in extra:
        table = table.join(LabelTable.read(path))
    return table
