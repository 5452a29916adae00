"""Choose labels class by class: a few for semi-supervised results, a share for validation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.packs.labels.class_names import require_classes
from loaders.packs.labels.tables import LabelTable
from loaders.packs.pack import Pack, Split

_SHOWN_CLASSES = 5


def subsample_per_class(labels: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    """Choose k positions of every class that occurs, as a pure function of labels, k and seed.

    With one seed, the choice for k labels is part of the choice for k + 1, so that the points of a curve over
    k differ only in the added labels.

    Args:
        labels: int64 [N], -1 where a position has no label.
        k: labels per class, at least 1; of a class with fewer labels, all are chosen (see `tell_scarce`).
        seed: seed for the choice, at least 0.

    Returns:
        Positions, int64 [at most k * number of classes], increasing.

    Raises:
        UserError: k below 1, or no labels at all.
    """
    if k < 1:
        raise UserError(f"labels per class: expected at least 1, found {k}")
    classes = np.unique(labels[labels >= 0])
    if len(classes) == 0:
        raise UserError("labels per class: the split has no labels; give a labelled split")
    chosen = []
    for label in classes:
        # One generator per class, so that the choice in one class does not change if another class grows.
        generator = np.random.Generator(np.random.Philox(key=[seed, int(label)]))
        chosen.append(generator.permutation(np.flatnonzero(labels == label))[:k])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def tell_scarce(labels: NDArray[np.int64], k: int, classes: Sequence[str]) -> None:
    """Print a line on the classes with fewer than k labelled images, if there are any; name up to five.

    Args:
        labels: int64 [N], -1 where a position has no label.
        k: number of labels wanted of each class.
        classes: names of the classes; empty if the pack has none.
    """
    known = labels[labels >= 0]
    counts = np.bincount(known, minlength=len(classes))
    scarce = np.flatnonzero(counts < k)
    if len(scarce) == 0 or len(known) == 0:
        return
    shown = [
        f"{counts[i]} of {classes[i] if i < len(classes) else i!r}" for i in scarce[:_SHOWN_CLASSES].tolist()
    ]
    rest = len(scarce) - len(shown)
    tell(
        f"labels per class: expected {k} labelled images of each class, found {', '.join(shown)}"
        + (f" and too few of {rest} other classes" if rest else "")
        + "; continuing with these"
    )


def few_labels(split: Split, per_class: int | None, seed: int) -> LabelTable:
    """Return a label table of k labels per class of a split.

    Args:
        per_class: k, see `subsample_per_class`; None keeps every label of the split.

    Raises:
        UserError: the split has no labels, its images have several labels, or `per_class` is below 1.
    """
    split.pack.require_one_label()
    known = split.labels()
    if per_class is None:
        positions = np.flatnonzero(known >= 0)
        if len(positions) == 0:
            raise UserError(f"split {split.name!r}: expected labels, found none; give a labelled split")
    else:
        positions = subsample_per_class(known, per_class, seed)
        tell_scarce(known, per_class, split.pack.classes)
    return LabelTable.of(split.rows(positions), known[positions], len(split.pack.classes))


def has_labels(pack: Pack, split: str) -> bool:
    """Return whether any image of a split has a true label; False if `split` is ""."""
    return bool(split) and bool((pack.split(split).labels() >= 0).any())


def read_label_table(pack: Pack, path: Path) -> LabelTable:
    """Read a label table and check that it fits this pack.

    Raises:
        UserError: no table can be read, or its number of classes, its images or its rows do not fit the pack.
    """
    table = pack.widened(LabelTable.read(path, len(pack)))
    if table.num_classes != len(pack.classes):
        raise UserError(
            f"label table {path}: expected one of the {len(pack.classes)} classes of the pack {pack.path}, "
            f"found one of {table.num_classes}; it belongs to another pack"
        )
    pack.check_images(table, f"label table {path}")
    return table


def training_labels(
    pack: Pack, split: str, per_class: int | None, seed: int, extra: Sequence[Path] = ()
) -> LabelTable:
    """Return the labels to train on: true labels of a split and labels of further tables, or only the latter.

    Args:
        split: labelled split; if it is "" or has no true label, all labels come from the tables.
        per_class: number of labels per class to take from the true labels or, if there are none, from the
            tables; None takes all.
        extra: paths of label tables; if a row has several labels, a true label that was taken counts, else
            that of the first table.

    Raises:
        UserError: the pack has no classes, labels are missing or cannot be used, or a table cannot be read or
            does not fit.
    """
    require_classes(pack.path, pack.classes)
    tables = [read_label_table(pack, path) for path in extra]
    if not split and not tables:
        raise UserError("labeled_split: expected a split, or label tables in --extra-labels, found neither")
    if tables and not has_labels(pack, split):
        bought = reduce(LabelTable.join, tables)
        if not len(bought):
            raise UserError("extra_labels: expected labels, found empty tables; give others")
        if per_class is None:
            return bought
        return bought.of_rows(bought.row[subsample_per_class(bought.label, per_class, seed)])
    return reduce(LabelTable.join, tables, few_labels(pack.split(split), per_class, seed))


def validation_part(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of every class, as a pure function of labels, share and seed.

    Args:
        labels: int64 [N], -1 where a position has no label.
        share: between 0 and 1. In each class at least one label is chosen and at least one is left; a single
            label is left.
        seed: seed for the choice, at least 0.

    Returns:
        bool [N], True for validation; unlabelled positions are False.

    Raises:
        UserError: the share is outside (0, 1), or no class has 2 labels or more.
    """
    if not 0 < share < 1:
        raise UserError(f"validation share: expected between 0 and 1, found {share}")
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if counts.max(initial=0) < 2:
        raise UserError(
            "validation share: expected at least 2 labelled images of a class, found "
            f"{counts.max(initial=0)}; give a split with more labels"
        )
    part = np.zeros(len(labels), np.bool_)
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=[seed, label]))
        size = min(max(1, int(count * share + 0.5)), count - 1)
        part[generator.permutation(np.flatnonzero(labels == label))[:size]] = True
    return part
