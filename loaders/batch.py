"""What a loader hands to a training step: the batch types and the loader protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """V views of the same B images, on the device the loader was built for.

    A batch may be kept for as long as the caller likes: its memory returns to the loader only when the
    last tensor that uses it is gone.

    Attributes:
        views: one tensor [B, 3, H, W] per view, each with its own H and W, in the dtype and memory format of
            the loader; normalised where the policy says so.
        labels: int64 [B], -1 where a row has no label; None in the unlabelled part of a pair.
        index: int64 [B], the row of each image in the pack.
        valid: bool [B]; False marks padding, which occurs in evaluation only.
    """

    views: tuple[Tensor, ...]
    labels: Tensor | None
    index: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PairedBatch:
    """Exactly B labelled and mu * B unlabelled images, both at one resumable position."""

    labeled: Batch
    unlabeled: Batch


BatchT_co = TypeVar("BatchT_co", covariant=True)


class Loader(Protocol[BatchT_co]):
    """A source of batches in which any epoch and step can be asked for; it divides itself among the ranks."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""

    @property
    def batch_size(self) -> int:
        """Global batch size, summed over all ranks."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Everything that decides the global batches (pack, rows, labels, views, order, seed, ...), by name.

        The ranks compare it before they start, and a run that resumes compares it with its checkpoint. So the
        number of ranks is no part of it.
        """

    @property
    def bad_rows(self) -> Mapping[int, str]:
        """Rows of the pack that could not be read so far on this rank, and why."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[BatchT_co]:
        """Yield the batches of `epoch` from `start_step` on, a pure function of these two and the seed."""

    def close(self) -> None:
        """Stop the workers and free the buffers; further calls do nothing."""
