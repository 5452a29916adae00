"""The loaders over any backend: they decide which rows come when and on which rank."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from loaders.backends.work import LABELED, UNLABELED, Pending, Renderer, Request, Work, run_ahead
from loaders.batch import Batch, PairedBatch
from loaders.common.checks import check_whole
from loaders.common.errors import LoaderError, UserError
from loaders.order import permutation
from loaders.order.balanced import ClassGroups, balanced_positions
from loaders.packs import LabelTable, Split
from loaders.placing import Place
from loaders.transform import Transforming

BatchT = TypeVar("BatchT")

MAX_EPOCH = 2**32 - 1  # the counter of the random numbers has 32 bits for the epoch
_OTHER_PROCESS = (
    "loader: expected the process that built it, found another, which lacks its threads; build the loader "
    "in the process that iterates over it, and without a DataLoader, since it has threads of its own"
)

Draws = Callable[[int, permutation.Positions], tuple[permutation.Positions, permutation.Positions]]
"""Maps an epoch and places in this epoch, int64 [B], to the epochs that the rows' random numbers use and to
the rows' positions in the split, int64 [B] each."""

Pair = tuple[Tensor | tuple[Tensor, ...], Tensor]


def _cancel_both(pair: tuple[Pending, Pending]) -> None:
    for pending in pair:
        pending.cancel()


class _EpochSource(ABC, Generic[BatchT]):
    """Base of the two loaders: checks the arguments of `epoch`, and refuses to yield batches after `close`.

    Attributes:
        batch_size: global batch size, summed over all ranks; of a paired loader, that of the labelled rows.
        steps_per_epoch: steps of one epoch, the same on every rank.
        backend: one line that names the backend and says why it was chosen.
        next_epoch: the epoch of the next `for batch in loader`; set it to resume.
    """

    def __init__(self, work: Work, batch_size: int, rows_per_step: int, place: Place, backend: str) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = permutation.num_steps(len(work.split), rows_per_step, drop_last=work.train)
        self.backend = backend
        self.next_epoch = 0
        self._work, self._place = work, place
        self._closed = False
        self._process = os.getpid()

    def __len__(self) -> int:
        """Return the steps of one epoch, as a DataLoader does."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[BatchT]:
        """Yield the batches of epoch `next_epoch`, and increment `next_epoch` for the next pass."""
        batches = self.epoch(self.next_epoch)
        self.next_epoch += 1
        return batches

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[BatchT]:
        """Yield this rank's batches of `epoch` from `start_step` on; skipped batches cost nothing.

        Args:
            epoch: number of the epoch, from 0 on.
            start_step: first step, from 0 to `steps_per_epoch`; the latter yields nothing.

        Raises:
            UserError: the epoch or the step does not exist, or another process built the loader.
            RuntimeError: the loader is closed; also from the iterator.
            LoaderError: from the iterator, when a batch cannot be made.
        """
        self._check_open()
        if get_worker_info() is not None:
            raise UserError(
                "loader: expected no DataLoader, found a worker of a DataLoader, each of which would yield "
                "every batch; iterate over the loader itself, which has threads of its own"
            )
        check_whole("epoch", epoch, 0, MAX_EPOCH)
        check_whole(
            "start_step", start_step, 0, self.steps_per_epoch, "resume with the same pack and batch size"
        )
        return self._batches(epoch, start_step)

    @abstractmethod
    def _batches(self, epoch: int, start_step: int) -> Iterator[BatchT]:
        """Yield the batches of an epoch; the arguments have been checked."""

    def close(self) -> None:
        """Stop the loader's threads; closing the loader again does nothing."""
        if not self._closed:
            self._closed = True
            if os.getpid() == self._process:  # a fork copies the threads' objects, not the threads
                self._work.crew.close()

    def __enter__(self) -> Self:
        """Return the loader, which is closed at the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the loader."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse pickling, with which a DataLoader would send the loader to its workers.

        Raises:
            UserError: always.
        """
        raise UserError(_OTHER_PROCESS)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this loader is closed; build another")
        if os.getpid() != self._process:
            raise UserError(_OTHER_PROCESS)

    def _open_only(self, batches: Iterator[BatchT]) -> Iterator[BatchT]:
        """Yield the batches; raise a RuntimeError once the loader is closed."""
        while True:
            self._check_open()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (CancelledError, LoaderError):
                self._check_open()  # raises if the loader was closed meanwhile
                raise
            yield batch


class EpochLoader(_EpochSource[Batch]):
    """Batches of one split: full and in random order in training; all rows, in order, in evaluation."""

    def __init__(
        self,
        renderer: Renderer,
        work: Work,
        batch_size: int,
        place: Place,
        backend: str,
        fingerprint: dict[str, str],
        draws: Draws | None,
        transforming: Transforming | None,
    ) -> None:
        """Use `build_loader`.

        Args:
            work: what is rendered; its crew is closed with the loader.
            draws: chooses the rows of an epoch; None for each row once.
            transforming: applied to every batch on the device; None for no transform.
        """
        super().__init__(work, batch_size, batch_size, place, backend)
        self.fingerprint = fingerprint
        self._draws = draws
        self._transforming = transforming
        self.renderer = renderer

    @property
    def pads(self) -> bool:
        """Whether batches may hold invalid rows, which only evaluation has."""
        return not self._work.train

    @property
    def images(self) -> tuple[Split, NDArray[np.int64] | None]:
        """The split in which a `Request` gives positions, and the label of each position (-1 for none)."""
        return self._work.split, self._work.labels

    @property
    def bad_rows(self) -> dict[int, str]:
        """The damaged rows so far and what is wrong with each; the next readable rows replaced them."""
        return self.renderer.bad_rows

    def request(self, epoch: int, step: int) -> Request:
        """Return the rows that this rank renders in a step of an epoch."""
        work, num_rows = self._work, len(self._work.split)
        positions, valid = permutation.step_positions(
            step, num_rows, self.batch_size, work.options.rank, work.options.num_ranks, work.train
        )
        epochs = np.full(len(positions), epoch, np.int64)
        if self._draws is not None:
            epochs, positions = self._draws(epoch, positions)
        elif work.train:
            positions = self.renderer.shuffle(epochs, positions, num_rows, work.options.seed, work.stream)
        return Request(positions, epochs, valid)

    def as_pairs(self) -> Pairs:
        """Return a loader of pairs (x, y), the form that training loops of other libraries expect."""
        return Pairs(self)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        steps = range(start_step, self.steps_per_epoch)
        with closing(self.renderer.walk(steps, partial(self.request, epoch))) as batches:
            for step, batch in enumerate(self._open_only(self._place(batches)), start_step):
                yield batch if self._transforming is None else self._transforming(batch, epoch, step)


class Pairs:
    """A loader whose batches are pairs (x, y) of views and labels, without invalid rows.

    `x` is the view, or the tuple of views where there are several; `y` is int64 [B].
    """

    def __init__(self, loader: EpochLoader) -> None:
        """Use `EpochLoader.as_pairs`."""
        self.loader = loader

    def __len__(self) -> int:
        """Return the steps of one epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Pair]:
        """Yield the pairs of the loader's next epoch."""
        return self._pairs(iter(self.loader))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Pair]:
        """Yield the pairs of an epoch; see `EpochLoader.epoch`."""
        return self._pairs(self.loader.epoch(epoch, start_step))

    def _pairs(self, batches: Iterator[Batch]) -> Iterator[Pair]:
        for batch in batches:
            assert batch.labels is not None, "a plain loader has labels, -1 where there is none"
            # In training all rows are valid, and a look at `valid` would wait for the device.
            if self.loader.pads:
                kept = batch.valid
                views, y = tuple(view[kept] for view in batch.views), batch.labels[kept]
            else:
                views, y = batch.views, batch.labels
            yield views[0] if len(views) == 1 else views, y


@dataclass(frozen=True)
class LabeledStream:
    """The rows that have a label: in one label table, or in the pack.

    Attributes:
        renderer: renders these rows.
        num_rows: number of these rows.
        fingerprint: fingerprint of a loader with these labels.
        groups: rows of each class, for balanced sampling; None to draw each row once per pass.
    """

    renderer: Renderer
    num_rows: int
    fingerprint: dict[str, str]
    groups: ClassGroups | None = None


class PairedLoader(_EpochSource[PairedBatch]):
    """Exactly B labelled and mu * B unlabelled rows in every step.

    An epoch is one pass over the unlabelled rows (rounded down to whole steps). Each stream cycles through
    its own epochs without a gap, so the rows of a step follow from the global step and the labels in use.
    """

    def __init__(
        self,
        make_labeled: Callable[[LabelTable | None], LabeledStream],
        labeled: LabeledStream,
        unlabeled: Renderer,
        work: Work,
        batch_size: int,
        mu: int,
        place: Place,
        backend: str,
    ) -> None:
        """Use `build_paired_loader`.

        Args:
            make_labeled: builds the labelled stream of a label table; None stands for the true labels.
            labeled: the labelled stream to begin with.
            work: work of the unlabelled stream; its crew is closed with the loader.
            mu: unlabelled rows per labelled row.
        """
        super().__init__(work, batch_size, mu * batch_size, place, backend)
        self._make_labeled = make_labeled
        self._labeled = labeled
        self._replaced: list[dict[int, str]] = []  # under earlier label tables; late batches add to them
        self.unlabeled = unlabeled
        self._options = work.options
        self._mu = mu

    @property
    def fingerprint(self) -> dict[str, str]:
        """The fingerprint with the label table of the next epoch; see `Loader`."""
        return self._labeled.fingerprint

    @property
    def labeled(self) -> Renderer:
        """Renderer of the labelled stream in the next epoch."""
        return self._labeled.renderer

    @property
    def bad_rows(self) -> dict[int, str]:
        """The damaged rows of both streams so far, and what is wrong with each; see `EpochLoader`."""
        parts = (*self._replaced, self.labeled.bad_rows, self.unlabeled.bad_rows)
        return {row: reason for part in parts for row, reason in dict(part).items()}

    def set_labels(self, table: LabelTable | None) -> None:
        """Use the labels of another table in every epoch that begins from now on.

        An epoch under way keeps the labels with which it began. To repeat or resume an epoch exactly, set
        its table first: the loader keeps only the last table. The fingerprint becomes that of a loader built
        with `table`.

        Args:
            table: other labels; None for the true ones, as in `build_paired_loader`.

        Raises:
            UserError: `table` cannot be used, such as one of another pack or without labels of the labelled
                split's rows; the loader then keeps its present table.
        """
        self._check_open()
        fresh = self._make_labeled(table)
        self._replaced.append(self.labeled.bad_rows)
        self._labeled = fresh

    def _batches(self, epoch: int, start_step: int) -> Iterator[PairedBatch]:
        first, labeled = epoch * self.steps_per_epoch, self._labeled
        steps = range(first + start_step, first + self.steps_per_epoch)
        ahead = run_ahead(
            steps,
            lambda step: self._submit(step, labeled),
            self._finish,
            _cancel_both,
            self._options.prefetch,
        )
        with closing(ahead):
            yield from self._open_only(self._place(ahead))

    def _finish(self, pair: tuple[Pending, Pending]) -> PairedBatch:
        labeled, unlabeled = (pending.result(self._options.timeout_s) for pending in pair)
        return PairedBatch(labeled, unlabeled)

    def _submit(self, global_step: int, labeled: LabeledStream) -> tuple[Pending, Pending]:
        self._check_open()
        given = self._request(
            global_step, labeled.renderer, self.batch_size, labeled.num_rows, LABELED, labeled.groups
        )
        other = self._request(
            global_step, self.unlabeled, self._mu * self.batch_size, len(self._work.split), UNLABELED
        )
        return labeled.renderer.submit(given), self.unlabeled.submit(other)

    def _request(
        self,
        global_step: int,
        renderer: Renderer,
        batch_size: int,
        num_rows: int,
        stream: int,
        groups: ClassGroups | None = None,
    ) -> Request:
        """Return the rows of one stream that this rank renders in a step, numbered from training's start."""
        ranks, seed = (self._options.rank, self._options.num_ranks), self._options.seed
        if groups is None:
            epochs, positions = permutation.stream_positions(global_step, batch_size, num_rows, *ranks)
            positions = renderer.shuffle(epochs, positions, num_rows, seed, stream)
        else:
            flat = permutation.rank_slice(global_step, batch_size, *ranks)
            epochs, positions = balanced_positions(flat, groups, seed)
        return Request(positions, epochs, np.ones(len(positions), np.bool_))
