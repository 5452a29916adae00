"""Labelled and unlabelled batches in turns, from a loader that gives them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loaders.batch import Batch, Loader, PairedBatch


class Alternating:
    """Yields each pair of a loader as mu unlabelled batches and then the labelled one, one batch per step.

    Every step is a `PairedBatch` whose other part has no rows. All batches have the loader's batch size.
    """

    def __init__(self, loader: Loader[PairedBatch], mu: int) -> None:
        """Wrap a loader.

        Args:
            loader: loader of pairs; `close` closes it too.
            mu: unlabelled images per labelled one, the value with which `loader` was built.
        """
        self._loader, self._mu = loader, mu
        self.batch_size = loader.batch_size
        self.steps_per_epoch = loader.steps_per_epoch * (mu + 1)
        self.fingerprint = {**loader.fingerprint, "turns": f"{mu} unlabelled, 1 labelled"}

    @property
    def bad_rows(self) -> Mapping[int, str]:
        """The damaged rows of the wrapped loader."""
        return self._loader.bad_rows

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[PairedBatch]:
        """Yield the batches of `epoch` from `start_step` on; see `Loader`."""
        place, turn = divmod(start_step, self._mu + 1)
        for pair in self._loader.epoch(epoch, start_step=place):
            yield from self._turns(pair)[turn:]
            turn = 0

    def _turns(self, pair: PairedBatch) -> list[PairedBatch]:
        size = len(pair.unlabeled.index) // self._mu
        none_labeled, none_unlabeled = _part(pair.labeled, 0, 0), _part(pair.unlabeled, 0, 0)
        parts = [_part(pair.unlabeled, size * turn, size * (turn + 1)) for turn in range(self._mu)]
        return [
            *(PairedBatch(none_labeled, part) for part in parts),
            PairedBatch(pair.labeled, none_unlabeled),
        ]

    def close(self) -> None:
        """Close the wrapped loader."""
        self._loader.close()


def _part(batch: Batch, first: int, stop: int) -> Batch:
    """Return rows first .. stop - 1 of a batch."""
    rows = slice(first, stop)
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(tuple(x[rows] for x in batch.views), labels, batch.index[rows], batch.valid[rows])
