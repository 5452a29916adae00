"""Balanced pseudo-labels: the best classes of each row, then the best rows of each class, from a stream.

Scores come in chunks and are read once. Each row counts for its top K classes only. These pairs are
collected, and from time to time only the best P of each class are kept. So memory holds about
2 * classes * P pairs.

Ties: within a row the lower class wins, within a class the lower row. So the result depends only on the
scores, not on the size or order of chunks or the number of ranks.

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
_AT_ONCE = 256  # rows whose keys fit into the caches of a core


@dataclass(frozen=True)
class Selection:
    """Pairs of rows and classes: by class, then from the highest score down.

    Attributes:
        row: int64 [M], row of the pack.
        label: int64 [M], class, increasing.
        score: float32 [M].
        num_classes: C.
        counts: int64 [C], pairs of each class; fewer than P if fewer rows had the class among their top K.
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
        """Give each row at most one class; a class may then hold fewer rows than asked for.

        Args:
            duplicates: what to do with a row that stands under several classes: "best" keeps its highest
                score (the lower class of equal ones), "drop" leaves the row out; for "all" see `by_place`.
        """
        best, *others = self.by_place()
        if duplicates == "drop" and others:
            return best._where(~np.isin(best.row, others[0].row))
        return best

    def by_place(self) -> list[Selection]:
        """Return the pairs in parts: the likeliest class of each row, the second of rows with two, and so on.

        Of classes with the same score, the lower one comes first.
        """
        order = np.lexsort((self.label, -self.score, self.row))  # best among the selected pairs only
        rows = self.row[order]
        places = np.arange(len(rows))
        starts = np.concatenate([[True], rows[1:] != rows[:-1]])[: len(rows)]
        place = np.empty(len(rows), np.int64)
        place[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
        return [self._where(place == number) for number in range(int(place.max(initial=0)) + 1)]

    def _where(self, kept: NDArray[np.bool_]) -> Selection:
        """Return some of the pairs."""
        counts = np.bincount(self.label[kept], minlength=self.num_classes).astype(np.int64)
        return Selection(self.row[kept], self.label[kept], self.score[kept], self.num_classes, counts)


class BalancedSelector:
    """Takes scores chunk by chunk; keeps the best P rows of each class, for the top K classes of rows."""

    def __init__(self, num_classes: int, top_k: int, per_class: int) -> None:
        """Begin with no pairs.

        Args:
            num_classes: C.
            top_k: classes for which a row may count, in [1, C]; 10 in the report.
            per_class: P, rows to keep of each class; 200 to 500 in the report.

        Raises:
            UserError: the counts select nothing.
        """
        if not 1 <= top_k <= num_classes:
            raise UserError(f"top_k: expected 1 to {num_classes}, the number of classes, found {top_k}")
        if per_class < 1:
            raise UserError(f"rows per class: expected at least 1, found {per_class}")
        self.num_classes, self.top_k, self.per_class = num_classes, top_k, per_class
        # At equal scores the lower class gets the higher place.
        self._places = torch.arange(num_classes).flip(0)
        room = 2 * num_classes * per_class + top_k * _AT_ONCE
        kinds = (np.int64, np.int64, np.float32)  # rows, labels, scores
        self._pairs: tuple[NDArray[Any], ...] = tuple(np.empty(room, kind) for kind in kinds)
        self._num_pairs = 0

    def update(self, scores: Scores | Tensor, rows: Rows | Tensor) -> None:
        """Take the scores of some rows; no row may come twice.

        Args:
            scores: float32 [B, C], higher is better; probabilities, or logits.
            rows: int64 [B], their rows of the pack.

        Raises:
            UserError: a score that is NaN, naming the row and the class.
            ValueError: shapes or dtypes that do not fit.
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
        # Integers in the order of the scores, with 0.0 for -0.0: below zero, the bits of a float grow as the
        # float falls.
        bits = (scores_BC + 0.0).view(torch.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        best_BK = (bits.long() << 32 | self._places).topk(self.top_k, 1).values
        label_BK = self.num_classes - 1 - (best_BK & 0xFFFFFFFF)
        row_BK = rows_B[:, None].expand_as(label_BK)
        columns = (row_BK, label_BK, scores_BC.gather(1, label_BK))
        self._hold(*(column.flatten().numpy() for column in columns))

    def _hold(self, *pairs: NDArray[Any]) -> None:
        """Add pairs; if they do not fit, first drop those that no selection needs."""
        if self._num_pairs + len(pairs[0]) > len(self._pairs[0]):
            self.finish()
        first, self._num_pairs = self._num_pairs, self._num_pairs + len(pairs[0])
        for column, values in zip(self._pairs, pairs, strict=True):
            column[first : self._num_pairs] = values

    def join_ranks(self) -> None:
        """Join the pairs of all ranks; every rank then holds all."""
        kept = gather_on_main(self.finish())
        self._num_pairs = 0
        for found in on_main(lambda: kept):
            self._hold(found.row, found.label, found.score)

    def finish(self) -> Selection:
        """Return the pairs to keep so far; a class that no row has among its top K has none."""
        row, label, score = (column[: self._num_pairs] for column in self._pairs)
        order = np.lexsort((row, -score, label))
        counts = np.bincount(label, minlength=self.num_classes)
        found = Selection(row[order], label[order], score[order], self.num_classes, counts)
        kept, self._num_pairs = found.best(self.per_class), 0
        self._hold(kept.row, kept.label, kept.score)
        return kept


@dataclass(frozen=True)
class DuplicateCount:
    """How many rows of a selection are under several classes.

    Attributes:
        per_class: P.
        num_pairs: selected pairs of row and class.
        num_rows: distinct rows among them.
        num_shared_rows: rows under more than one class.
        num_short_classes: classes with fewer than P rows.
    """

    per_class: int
    num_pairs: int
    num_rows: int
    num_shared_rows: int
    num_short_classes: int

    @property
    def num_extra_labels(self) -> int:
        """The number of labels beyond the first of each row: at least so many are wrong."""
        return self.num_pairs - self.num_rows

    @property
    def share(self) -> float:
        """The share of the selected pairs that are extra labels, in [0, 1)."""
        return self.num_extra_labels / self.num_pairs if self.num_pairs else 0.0


def count_duplicates(selection: Selection, per_class: Sequence[int]) -> list[DuplicateCount]:
    """Count, for several P, how many rows are under several classes.

    Args:
        selection: selection for the largest P of interest; it contains those for smaller P.
        per_class: values of P, each at most the selection's own.

    Source: the procedure of section 4.2 of the 2021 report: the fewer duplicates, the surer the labels.
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

    The report drew the line between P = 400 (0.27 % duplicates) and P = 500 (2.02 %).

    Returns:
        One of the counted P, or None where even the smallest exceeds the share or selects nothing.
    """
    suggested = None
    for entry in sorted(counted, key=lambda entry: entry.per_class):
        if entry.share > max_share or entry.num_pairs == 0:
            break
        suggested = entry.per_class
    return suggested
