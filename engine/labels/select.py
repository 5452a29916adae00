"""Balanced pseudo-labels: the best classes of each row, then the best rows of each class, from a stream.

Scores come in chunks and are read once. Each row counts for its top K classes only, and each class keeps a
heap of its best P rows. So memory holds classes * P entries, and only finished heaps are sorted.

Ties: within a row the lower class wins, within a class the lower row. So the result depends only on the
scores, not on the size or order of chunks or the number of ranks.

Source: the protocol of Yalniz et al. 2019, "Billion-scale semi-supervised learning for image
classification" (arXiv 1905.00546), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.choices import Duplicates
from engine.train.distributed import all_gather, world_size
from loaders.common.errors import UserError
from loaders.kernels.cache import exact_inlined, exact_kernel

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]


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
        """Set up empty heaps.

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
        self._score = np.empty((num_classes, per_class), np.float32)
        self._row = np.empty((num_classes, per_class), np.int64)
        self._size = np.zeros(num_classes, np.int64)

    def update(self, scores: Scores | torch.Tensor, rows: Rows | torch.Tensor) -> None:
        """Take the scores of some rows; no row may come twice.

        Args:
            scores: float32 [B, C], higher is better; probabilities, or logits.
            rows: int64 [B], their rows of the pack.

        Raises:
            UserError: a score that is NaN, naming the row and the class.
            ValueError: shapes or dtypes that do not fit.
        """
        scores_BC, rows_B = np.ascontiguousarray(scores), np.ascontiguousarray(rows)
        if scores_BC.shape != (len(rows_B), self.num_classes) or rows_B.ndim != 1:
            raise ValueError(
                f"scores: expected [{len(rows_B)}, {self.num_classes}], got {list(scores_BC.shape)}"
            )
        if scores_BC.dtype != np.float32 or rows_B.dtype != np.int64:
            raise ValueError(f"scores: expected float32 and int64, got {scores_BC.dtype} and {rows_B.dtype}")
        bad = _offer_top_classes(scores_BC, rows_B, self.top_k, self._score, self._row, self._size)
        if bad >= 0:
            row, label = divmod(int(bad), self.num_classes)
            raise UserError(
                f"scores: row {rows_B[row]} has NaN for class {label}; the network that made them is broken, "
                "take an earlier checkpoint"
            )

    def join_ranks(self) -> None:
        """Join the heaps of all ranks; every rank then holds the same heaps."""
        if world_size() == 1:
            return
        joined = [all_gather(torch.from_numpy(a[None].copy())) for a in (self._score, self._row, self._size)]
        score, row, size = (tensor.numpy() for tensor in joined)
        self._size[:] = 0
        for rank in range(len(size)):
            for label in range(self.num_classes):
                held = slice(0, int(size[rank, label]))
                heap = (self._score[label], self._row[label], self._size[label : label + 1])
                _offer_all(score[rank, label, held], row[rank, label, held], *heap)

    def finish(self) -> Selection:
        """Return the pairs that were kept; a class that no row has among its top K has none."""
        orders = [
            np.lexsort((self._row[c, :size], -self._score[c, :size])) for c, size in enumerate(self._size)
        ]
        return Selection(
            row=np.concatenate([self._row[c][order] for c, order in enumerate(orders)]),
            label=np.repeat(np.arange(self.num_classes), self._size),
            score=np.concatenate([self._score[c][order] for c, order in enumerate(orders)]),
            num_classes=self.num_classes,
            counts=self._size.copy(),
        )


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


@exact_inlined
def _worse(score_a: float, row_a: int, score_b: float, row_b: int) -> bool:
    return score_a < score_b or (score_a == score_b and row_a > row_b)


@exact_inlined
def _offer(score: float, row: int, heap_score: Scores, heap_row: Rows, size: Rows) -> None:
    # A heap whose root is the worst entry kept; `size` is int64 [1].
    num_kept = size[0]
    if num_kept < heap_score.size:
        place = num_kept
        size[0] = num_kept + 1
        while place > 0:
            parent = (place - 1) >> 1
            if not _worse(score, row, heap_score[parent], heap_row[parent]):
                break
            heap_score[place], heap_row[place] = heap_score[parent], heap_row[parent]
            place = parent
    else:
        if not _worse(heap_score[0], heap_row[0], score, row):
            return
        place = 0
        while True:
            child = 2 * place + 1
            if child >= num_kept:
                break
            if child + 1 < num_kept and _worse(
                heap_score[child + 1], heap_row[child + 1], heap_score[child], heap_row[child]
            ):
                child += 1
            if not _worse(heap_score[child], heap_row[child], score, row):
                break
            heap_score[place], heap_row[place] = heap_score[child], heap_row[child]
            place = child
    heap_score[place], heap_row[place] = score, row


@exact_kernel
def _offer_all(score: Scores, row: Rows, heap_score: Scores, heap_row: Rows, size: Rows) -> None:
    for i in range(score.size):
        _offer(score[i], row[i], heap_score, heap_row, size)


@exact_kernel
def _offer_top_classes(
    scores: Scores, rows: Rows, top_k: int, heap_score: Scores, heap_row: Rows, size: Rows
) -> int:
    """Offer each row to the heaps of its top K classes; return row * C + class of a NaN, or -1."""
    num_rows, num_classes = scores.shape
    best_score = np.empty(top_k, np.float32)
    best_class = np.empty(top_k, np.int64)
    for b in range(num_rows):
        held = 0
        for c in range(num_classes):
            score = scores[b, c]
            # One test for two cases: a score that is not at most the worst kept score is better, or NaN.
            if held == top_k and score <= best_score[top_k - 1]:
                continue
            if np.isnan(score):
                return int(b * num_classes + c)
            place = held if held < top_k else top_k - 1
            while place > 0 and best_score[place - 1] < score:
                best_score[place], best_class[place] = best_score[place - 1], best_class[place - 1]
                place -= 1
            best_score[place], best_class[place] = score, c
            held = min(held + 1, top_k)
        for k in range(top_k):
            c = best_class[k]
            _offer(best_score[k], rows[b], heap_score[c], heap_row[c], size[c : c + 1])
    return -1
