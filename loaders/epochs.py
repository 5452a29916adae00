"""Loaders over any backend: which rows come when, on which rank, and how far ahead work begins."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from typing_extensions import Self

from loaders import order
from loaders.balanced import ClassGroups, balanced_positions
from loaders.batch import Batch, PairedBatch
from loaders.checks import check_whole
from loaders.errors import UserError
from loaders.packs.labels import LabelTable

T = TypeVar("T")
BatchT = TypeVar("BatchT")

# What stands at (epochs, positions) of a split of so many rows, under a seed, in a stream of the order.
Shuffle = Callable[[order.Positions, order.Positions, int, int, int], order.Positions]

MAX_EPOCH = 2**32 - 1  # an epoch is one word of the random numbers' counter
_OTHER_PROCESS = (
    "loader: expected the process that built it, found another, to which its threads do not come along; "
    "build it in the process that iterates it, and give it to no DataLoader: it has threads of its own"
)
LABELED, UNLABELED = 0, 1  # streams of the order; the unlabelled one is also a plain loader's


class Pending(Protocol):
    """A batch under way."""

    def result(self, timeout_s: float) -> Batch:
        """Wait for the batch."""

    def cancel(self) -> None:
        """Give the batch up."""


class Renderer(Protocol):
    """What a backend offers: begin a batch of given rows of one split."""

    bad_rows: dict[int, str]

    def submit(
        self, positions: NDArray[np.int64], epochs: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> Pending:
        """Begin the batch of these positions (int64 [B]) of the split."""


@dataclass(frozen=True)
class Share:
    """What a process takes of every global batch, and how it waits for it.

    Attributes:
        rank: this process, in [0, num_ranks).
        num_ranks: number of processes.
        prefetch: batches under way besides the one being used.
        timeout_s: seconds that one batch may take.
    """

    rank: int = 0
    num_ranks: int = 1
    prefetch: int = 2
    timeout_s: float = 120.0


def _run_ahead(
    steps: range,
    submit: Callable[[int], T],
    finish: Callable[[T], BatchT],
    cancel: Callable[[T], None],
    depth: int,
) -> Iterator[BatchT]:
    """Yield the results of `steps` in order while up to `depth` later ones are under way."""
    under_way: deque[T] = deque()
    try:
        for step in steps:
            under_way.append(submit(step))
            if len(under_way) > depth:
                yield finish(under_way.popleft())
        while under_way:
            yield finish(under_way.popleft())
    finally:
        for pending in under_way:
            cancel(pending)


def _cancel_both(pair: tuple[Pending, Pending]) -> None:
    for pending in pair:
        pending.cancel()


class _EpochSource(ABC, Generic[BatchT]):
    """What both loaders share: where an epoch may begin, closing, and the refusal to start once closed.

    Attributes:
        backend: which backend renders the batches and why it was taken, in one line.
    """

    def __init__(self, close: Callable[[], None], backend: str) -> None:
        self.backend = backend
        self._close = close
        self._closed = False
        self._process = os.getpid()

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[BatchT]:
        """Yield this rank's batches of `epoch` from `start_step` on; no skipped batch is computed.

        Args:
            epoch: from 0 on.
            start_step: from 0 to `steps_per_epoch`, which leaves nothing to yield.

        Raises:
            UserError: no such epoch or step.
            LoaderError: from the iterator, when a batch cannot be had.
        """
        self._check_open()
        if get_worker_info() is not None:
            raise UserError(
                "loader: expected to be iterated itself, found a worker of a DataLoader, where every worker "
                "would yield every batch; iterate the loader without one, it has threads of its own"
            )
        check_whole("epoch", epoch, 0, MAX_EPOCH)
        check_whole(
            "start_step", start_step, 0, self.steps_per_epoch, "resume with the pack and batch size of before"
        )
        return self._batches(epoch, start_step)

    @abstractmethod
    def _batches(self, epoch: int, start_step: int) -> Iterator[BatchT]:
        """Yield the batches of an epoch that there is."""

    def close(self) -> None:
        """Stop the workers and free the buffers; further calls do nothing."""
        if not self._closed:
            self._closed = True
            if os.getpid() == self._process:  # a fork has copies of the threads' names, not the threads
                self._close()

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes it."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to another process, as a DataLoader does with its data set.

        Raises:
            UserError: always.
        """
        raise UserError(_OTHER_PROCESS)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this loader is closed; build another")
        if os.getpid() != self._process:
            raise UserError(_OTHER_PROCESS)

    def _wait_for(self, pending: Pending, timeout_s: float) -> Batch:
        """Wait for a batch of a loader that is open, and stays so."""
        self._check_open()
        try:
            return pending.result(timeout_s)
        except CancelledError:  # closed meanwhile
            self._check_open()
            raise


class EpochLoader(_EpochSource[Batch]):
    """Batches of one split: shuffled and complete ones in training, every row in its order in evaluation.

    Args:
        renderer: the backend.
        num_rows: rows of the split.
        batch_size: global batch size.
        seed: of the order.
        train: shuffle and drop the last partial batch; else keep the order and pad it.
        share: this process's part.
        place: moves a finished batch to the device.
        close: stops the backend.
        backend: which backend it is and why, in one line, for the attribute of that name.
        fingerprint: see `Loader`.
        shuffle: the order of training; over all rows by default.
    """

    def __init__(
        self,
        renderer: Renderer,
        num_rows: int,
        batch_size: int,
        seed: int,
        train: bool,
        share: Share,
        place: Callable[[Batch], Batch],
        close: Callable[[], None],
        backend: str,
        fingerprint: dict[str, str],
        shuffle: Shuffle = order.permute_stream,
    ) -> None:
        super().__init__(close, backend)
        self.fingerprint = fingerprint
        self.renderer = renderer
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._seed = seed
        self._train = train
        self._share = share
        self._place = place
        self._shuffle = shuffle

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""
        return order.num_steps(self._num_rows, self._batch_size, drop_last=self._train)

    @property
    def batch_size(self) -> int:
        """Global batch size, summed over all ranks."""
        return self._batch_size

    @property
    def bad_rows(self) -> dict[int, str]:
        """Damaged rows met so far and what was wrong; each was replaced by the next readable row."""
        return self.renderer.bad_rows

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        return _run_ahead(
            range(start_step, self.steps_per_epoch),
            lambda step: self._submit(epoch, step),
            lambda pending: self._place(self._wait_for(pending, self._share.timeout_s)),
            lambda pending: pending.cancel(),
            self._share.prefetch,
        )

    def _submit(self, epoch: int, step: int) -> Pending:
        self._check_open()
        positions, valid = order.step_positions(
            step, self._num_rows, self._batch_size, self._share.rank, self._share.num_ranks, self._train
        )
        epochs = np.full(len(positions), epoch, np.int64)
        if self._train:
            positions = self._shuffle(epochs, positions, self._num_rows, self._seed, UNLABELED)
        return self.renderer.submit(positions, epochs, valid)


@dataclass(frozen=True)
class LabeledStream:
    """The rows that carry a label in one table.

    Attributes:
        renderer: backend of the labelled rows alone.
        num_rows: their number.
        fingerprint: of a loader with these labels.
        groups: their classes, for balanced sampling; None cycles through the rows.
    """

    renderer: Renderer
    num_rows: int
    fingerprint: dict[str, str]
    groups: ClassGroups | None = None


class PairedLoader(_EpochSource[PairedBatch]):
    """Exactly B labelled and mu * B unlabelled rows in every step, both streams under one position.

    An epoch is one pass over the unlabelled rows (rounded down to whole steps). Each stream cycles through
    its own epochs without a gap, so its place is a function of the global step and the labels alone.

    Args:
        make_labeled: builds the labelled stream of a label table; None stands for the true labels.
        labels: the first label table.
        unlabeled: backend of the unlabelled stream.
        num_unlabeled: rows of the unlabelled split.
        batch_size: global number B of labelled rows per step.
        mu: unlabelled rows per labelled row.
        seed, share, place, close, backend: see `EpochLoader`.
        shuffle: the order of the unlabelled stream.
    """

    def __init__(
        self,
        make_labeled: Callable[[LabelTable | None], LabeledStream],
        labels: LabelTable | None,
        unlabeled: Renderer,
        num_unlabeled: int,
        batch_size: int,
        mu: int,
        seed: int,
        share: Share,
        place: Callable[[Batch], Batch],
        close: Callable[[], None],
        backend: str,
        shuffle: Shuffle = order.permute_stream,
    ) -> None:
        super().__init__(close, backend)
        self._make_labeled = make_labeled
        self._labeled = make_labeled(labels)
        self._replaced: list[dict[int, str]] = []  # bad rows of earlier tables, still growing
        self.unlabeled = unlabeled
        self._num_unlabeled = num_unlabeled
        self._batch_size = batch_size
        self._mu = mu
        self._seed = seed
        self._share = share
        self._place = place
        self._shuffle = shuffle

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch of the unlabelled rows, the same on every rank."""
        return order.num_steps(self._num_unlabeled, self._mu * self._batch_size)

    @property
    def batch_size(self) -> int:
        """Global number of labelled rows per step."""
        return self._batch_size

    @property
    def fingerprint(self) -> dict[str, str]:
        """See `Loader`; that of the label table which the next epoch will use."""
        return self._labeled.fingerprint

    @property
    def labeled(self) -> Renderer:
        """Backend of the labelled stream, as the next epoch will use it."""
        return self._labeled.renderer

    @property
    def bad_rows(self) -> dict[int, str]:
        """Damaged rows met so far in both streams; see `EpochLoader`."""
        parts = (*self._replaced, self.labeled.bad_rows, self.unlabeled.bad_rows)
        return {row: reason for part in parts for row, reason in dict(part).items()}

    @property
    def num_labeled(self) -> int:
        """Rows that carry a label, as the next epoch will use them."""
        return self._labeled.num_rows

    def set_labels(self, table: LabelTable | None) -> None:
        """Draw the labelled stream from another table, from the next call of `epoch` on.

        An epoch under way keeps the labels it began with. To repeat or resume an epoch exactly, set the
        table that it began with first: the loader remembers none but the last. The fingerprint becomes
        that of a loader built with `table`.

        Args:
            table: other labels; None for the true ones, as in `build_paired_loader`.

        Raises:
            UserError: no row of the labelled split has a label in `table`, or it belongs to another pack;
                the loader then keeps the table that it has.
        """
        self._check_open()
        fresh = self._make_labeled(table)
        self._replaced.append(self.labeled.bad_rows)
        self._labeled = fresh

    def _batches(self, epoch: int, start_step: int) -> Iterator[PairedBatch]:
        first, labeled = epoch * self.steps_per_epoch, self._labeled
        return _run_ahead(
            range(first + start_step, first + self.steps_per_epoch),
            lambda global_step: self._submit(global_step, labeled),
            self._finish,
            _cancel_both,
            self._share.prefetch,
        )

    def _finish(self, pair: tuple[Pending, Pending]) -> PairedBatch:
        labeled, unlabeled = (self._place(self._wait_for(pending, self._share.timeout_s)) for pending in pair)
        return PairedBatch(labeled, unlabeled)

    def _submit(self, global_step: int, labeled: LabeledStream) -> tuple[Pending, Pending]:
        self._check_open()
        return self._submit_labeled(global_step, labeled), self._submit_unlabeled(global_step)

    def _submit_labeled(self, global_step: int, stream: LabeledStream) -> Pending:
        ranks = (self._share.rank, self._share.num_ranks)
        if stream.groups is None:
            epochs, positions = order.stream_positions(global_step, self._batch_size, stream.num_rows, *ranks)
            positions = order.permute_stream(epochs, positions, stream.num_rows, self._seed, LABELED)
        else:
            flat = order.rank_slice(global_step, self._batch_size, *ranks)
            epochs, positions = balanced_positions(flat, stream.groups, self._seed)
        return stream.renderer.submit(positions, epochs, np.ones(len(positions), np.bool_))

    def _submit_unlabeled(self, global_step: int) -> Pending:
        batch_size, num_rows = self._mu * self._batch_size, self._num_unlabeled
        epochs, positions = order.stream_positions(
            global_step, batch_size, num_rows, self._share.rank, self._share.num_ranks
        )
        positions = self._shuffle(epochs, positions, num_rows, self._seed, UNLABELED)
        return self.unlabeled.submit(positions, epochs, np.ones(len(positions), np.bool_))
