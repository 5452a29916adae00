"""Balanced pseudo-labels from a network's scores: for each class, the images that score highest in it.

An image is given by its row in the pack. Scores come in chunks and are read once. Each row is paired with
its top K classes only. The pairs are collected, and from time to time all but the best P of each class are
dropped, so that memory holds at most about 2 * classes * P pairs.

Of equal scores in a row, the lower class wins; of equal scores in a class, the lower row. The result thus
depends only on the scores, not on the size or order of the chunks or the number of ranks.

Source: the protocol of Yalniz et al. 2019, "Billion-scale semi-supervised learning for image
classification" (arXiv 1905.00546), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.choices import Duplicates
from engine.train.distributed import gather_on_main, on_main
from loaders.common.errors import UserError

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]
_AT_ONCE = 256  # rows whose scores are sorted at once, so that they fit into the caches of a core


@dataclass(frozen=True)
class Selection:
    """Selected pairs of a row and a class, sorted by class, then from the highest score down.

    Attributes:
        row: int64 [M], row of the pack.
        label: int64 [M], class, increasing.
        score: float32 [M].
        num_classes: C.
        counts: int64 [C], number of pairs of each class.
    """

    row: Rows
    label: Rows
    score: Scores
    num_classes: int
    counts: Rows

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.row)

    def best(self, per_class: int) -> Selection:
        """Return the first `per_class` rows of each class: the selection for a smaller P."""
        starts = np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        kept = np.arange(len(self)) - starts < per_class
        counts = np.minimum(self.counts, per_class)
        return Selection(self.row[kept], self.label[kept], self.score[kept], self.num_classes, counts)

    def one_class_each(self, duplicates: Duplicates) -> Selection:
        """Return a selection in which each row has at most one class, so that a class may have fewer rows.

        Args:
            duplicates: for a row with several classes, "best" keeps the class with the highest score (of
                equal ones the lowest class), and "drop" leaves the row out. "all" is not handled here; see
                `by_place`.
        """
        best, *others = self.by_place()
        if duplicates == "drop" and others:
            return best._where(~np.isin(best.row, others[0].row))
        return best

    def by_place(self) -> list[Selection]:
        """Split the pairs: first the best class of each row, then the second best, and so on.

        Only selected pairs count. Of classes with the same score, the lower one comes first.
        """
        order = np.lexsort((self.label, -self.score, self.row))
        rows = self.row[order]
        places = np.arange(len(rows))
        starts = np.concatenate([[True], rows[1:] != rows[:-1]])[: len(rows)]
        place = np.empty(len(rows), np.int64)
        place[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
        return [self._where(place == number) for number in range(int(place.max(initial=0)) + 1)]

    def _where(self, kept: NDArray[np.bool_]) -> Selection:
        """Return the pairs for which `kept` is true."""
        counts = np.bincount(self.label[kept], minlength=self.num_classes).astype(np.int64)
        return Selection(self.row[kept], self.label[kept], self.score[kept], self.num_classes, counts)


class BalancedSelector:
    """Takes scores in chunks and keeps the best P rows of each class; a row counts for its top K classes."""

    def __init__(self, num_classes: int, top_k: int, per_class: int) -> None:
        """Start without pairs.

        Args:
            num_classes: C.
            top_k: K, classes that a row is paired with, in [1, C]; 10 in Zhou, Wan, Li 2021.
            per_class: P, rows to keep of each class; 200 to 500 in Zhou, Wan, Li 2021.

        Raises:
            UserError: `top_k` or `per_class` is out of range.
        """
        if not 1 <= top_k <= num_classes:
            raise UserError(f"top_k: expected 1 to {num_classes}, the number of classes, found {top_k}")
        if per_class < 1:
            raise UserError(f"rows per class: expected at least 1, found {per_class}")
        self.num_classes, self.top_k, self.per_class = num_classes, top_k, per_class
        # Added to the keys that scores are sorted by, so that of equal scores the lower class wins.
        self._places = torch.arange(num_classes).flip(0)
        room = 2 * num_classes * per_class + top_k * _AT_ONCE
        kinds = (np.int64, np.int64, np.float32)  # rows, labels, scores
        self._pairs: tuple[NDArray[Any], ...] = tuple(np.empty(room, kind) for kind in kinds)
        self._num_pairs = 0

    def update(self, scores: Scores | Tensor, rows: Rows | Tensor) -> None:
        """Add the scores of some rows; no row may be passed twice.

        Args:
            scores: float32 [B, C], probabilities or logits; higher is better.
            rows: int64 [B], rows of the pack.

        Raises:
            UserError: a score is NaN; the message names the row and the class.
            ValueError: shapes or dtypes do not fit.
        """
        scores_BC, rows_B = torch.as_tensor(scores), torch.as_tensor(rows)
        if scores_BC.shape != (len(rows_B), self.num_classes) or rows_B.ndim != 1:
            raise ValueError(
                f"scores: expected [{len(rows_B)}, {self.num_classes}], got {list(scores_BC.shape)}"
            )
        if scores_BC.dtype != torch.float32 or rows_B.dtype != torch.int64:
            raise ValueError(f"scores: expected float32 and int64, got {scores_BC.dtype} and {rows_B.dtype}")
        for bad, label in scores_BC.isnan().nonzero()[:1].tolist():
            raise UserError(
                f"scores: row {rows_B[bad]} has NaN for class {label}; the network that made them is broken, "
                "take an earlier checkpoint"
            )
        for part in zip(torch.split(scores_BC, _AT_ONCE), torch.split(rows_B, _AT_ONCE), strict=True):
            self._offer(*part)

    def _offer(self, scores_BC: Tensor, rows_B: Tensor) -> None:
        # Turn scores into integers of the same order, so that one topk can sort by score and class. The bits
        # of a negative float grow as it falls, so all but the sign are flipped; + 0.0 turns -0.0 into 0.0.
        bits = (scores_BC + 0.0).view(torch.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        best_BK = (bits.long() << 32 | self._places).topk(self.top_k, 1).values
        label_BK = self.num_classes - 1 - (best_BK & 0xFFFFFFFF)
        row_BK = rows_B[:, None].expand_as(label_BK)
        columns = (row_BK, label_BK, scores_BC.gather(1, label_BK))
        self._hold(*(column.flatten().numpy() for column in columns))

    def _hold(self, *pairs: NDArray[Any]) -> None:
        """Add pairs; if there is no room, first drop the pairs that are not among the best P of a class."""
        if self._num_pairs + len(pairs[0]) > len(self._pairs[0]):
            self.finish()
        first, self._num_pairs = self._num_pairs, self._num_pairs + len(pairs[0])
        for column, values in zip(self._pairs, pairs, strict=True):
            column[first : self._num_pairs] = values

    def join_ranks(self) -> None:
        """Exchange the best pairs of all ranks, so that every rank selects from the same pairs."""
        kept = gather_on_main(self.finish())
        self._num_pairs = 0
        for found in on_main(lambda: kept):
            self._hold(found.row, found.label, found.score)

    def finish(self) -> Selection:
        """Return the selection from the scores so far; a class in no row's top K has no pairs."""
        row, label, score = (column[: self._num_pairs] for column in self._pairs)
        order = np.lexsort((row, -score, label))
        counts = np.bincount(label, minlength=self.num_classes)
        found = Selection(row[order], label[order], score[order], self.num_classes, counts)
        kept, self._num_pairs = found.best(self.per_class), 0
        self._hold(kept.row, kept.label, kept.score)
        return kept


@dataclass(frozen=True)
class DuplicateCount:
    """How many rows of a selection have several classes.

    Attributes:
        per_class: P, number of rows to keep of each class.
        num_pairs: selected pairs of row and class.
        num_rows: distinct rows among the pairs.
        num_shared_rows: rows with more than one class.
        num_short_classes: classes with fewer than P rows.
    """

    per_class: int
    num_pairs: int
    num_rows: int
    num_shared_rows: int
    num_short_classes: int

    @property
    def num_extra_labels(self) -> int:
        """The number of labels beyond the first of each row; at least this many labels are wrong."""
        return self.num_pairs - self.num_rows

    @property
    def share(self) -> float:
        """The share of the selected pairs that are extra labels, in [0, 1)."""
        return self.num_extra_labels / self.num_pairs if self.num_pairs else 0.0


def count_duplicates(selection: Selection, per_class: Sequence[int]) -> list[DuplicateCount]:
    """Count, for each of several P, the rows that have several classes.

    Args:
        selection: selection for the largest P; it contains the selections for smaller P.
        per_class: values of P, the rows to keep of each class; each at most the selection's own.

    Source: Zhou, Wan, Li 2021, section 4.2: the fewer duplicates, the more reliable the labels.
    """
    counted = []
    for p in per_class:
        part = selection.best(p)
        _, times = np.unique(part.row, return_counts=True)
        short = int((part.counts < p).sum())
        counted.append(DuplicateCount(p, len(part), len(times), int((times > 1).sum()), short))
    return counted


def suggest_per_class(counted: Sequence[DuplicateCount], max_share: float = 0.01) -> int | None:
    """Return the largest P up to which the share of extra labels stays within `max_share`.

    Zhou, Wan, Li 2021 drew the line between P = 400 (0.27 % duplicates) and P = 500 (2.02 %).

    Returns:
        One of the counted P, or None if even the smallest exceeds the share or selects nothing.
    """
    suggested = None
    for entry in sorted(counted, key=lambda entry: entry.per_class):
        if entry.share > max_share or entry.num_pairs == 0:
            break
        suggested = entry.per_class
    return suggested
