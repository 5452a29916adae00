"""What a loader hands to a training step: the batch types and the loader protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """V views of the same B images, on the device the loader was built for.

    A batch may be kept for as long as the caller likes: its memory returns to the loader only when no
    tensor uses this memory any more.

    Attributes:
        views: one tensor [B, 3, H, W] per view, each with its own H and W, in the dtype and memory format of
            the loader; normalised as the policy says, unless uint8.
        labels: int64 [B], -1 where a row has no label; None in the unlabelled part of a pair.
        index: int64 [B], the row of each image in the pack.
        valid: bool [B]; False marks padding and replaced damaged rows, both in evaluation only.
    """

    views: tuple[Tensor, ...]
    labels: Tensor | None
    index: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PairedBatch:
    """The labelled and mu times as many unlabelled images of a step; `Alternating` leaves one part empty."""

    labeled: Batch
    unlabeled: Batch


BatchT_co = TypeVar("BatchT_co", covariant=True)


class Loader(Protocol[BatchT_co]):
    """A source of batches that can start at any epoch and step; each rank gets its share of every batch."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the same on every rank."""

    @property
    def batch_size(self) -> int:
        """Global batch size, summed over all ranks; of pairs, that of the labelled part."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Everything that decides the global batches (pack, rows, labels, views, order, seed, ...), by name.

        The ranks compare their fingerprints before they start, and a resumed run compares its fingerprint
        with the checkpoint's. The number of ranks is part of it only with a batch transform, which draws
        different random numbers on each rank.
        """

    @property
    def bad_rows(self) -> Mapping[int, str]:
        """Rows of the pack that this rank has failed to read so far, with the reason for each."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[BatchT_co]:
        """Yield this rank's batches of `epoch` from `start_step` on; equal calls yield equal batches."""

    def close(self) -> None:
        """Stop the loader's threads; closing the loader again does nothing."""
