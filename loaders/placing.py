"""Moves batches to a device; if it is a CUDA device, the consumer's thread never waits for it.

Batch k + 1 is copied on a separate stream while batch k is used: first its views, from pinned memory, unless
they were drawn on the device, then its labels, index and validity in one block. An event makes the consumer's
stream wait for the copies, on the device. Host memory returns to its pool when the event after its copy has
passed, device memory when the consumer's stream no longer needs it (`Tensor.record_stream`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from loaders.batch import Batch, PairedBatch

BatchT = TypeVar("BatchT", Batch, PairedBatch)

_ALIGNED_BYTES = 16  # alignment of each array in a block; kernels may rely on it


class CudaStreams:
    """Streams of a CUDA device, and copies to the device."""

    def __init__(self, device: torch.device) -> None:
        """Choose the device; `cuda` without a number means the current one."""
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)

    def stream(self) -> torch.cuda.Stream:
        """Return a new stream."""
        return torch.cuda.Stream(self.device)

    def current(self) -> torch.cuda.Stream:
        """Return the stream in which the calling thread queues its work."""
        return torch.cuda.current_stream(self.device)

    def use(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """Return a context in which device work is queued in `stream`."""
        return torch.cuda.stream(stream)

    def pinned(self, size_bytes: int) -> Tensor:
        """Return uint8 [size_bytes], pinned host memory, which the device can read by itself."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, tensor: Tensor) -> Tensor:
        """Queue a copy from host memory to the device; return the copy, in the same layout."""
        return tensor.to(self.device, non_blocking=True)

    def record(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        """Keep a deleted tensor's memory until the stream has done the work queued before the deletion."""
        tensor.record_stream(stream)


class Lent:
    """Keeps objects that the device reads, each until an event shows that the device is done with it."""

    def __init__(self) -> None:
        """Start empty."""
        self._kept: deque[tuple[torch.cuda.Event, Any]] = deque()

    def keep(self, event: torch.cuda.Event, *what: Any) -> None:
        """Keep objects until an event has passed; release those whose event has passed, without waiting."""
        self._kept.append((event, what))
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()

    def __len__(self) -> int:
        """Return the number of entries kept; the events of some may have passed since the last `keep`."""
        return len(self._kept)


class PinnedPool:
    """Pinned memory of any size, reused once the event after its last copy has passed.

    Pinning takes milliseconds and stops the device, so memory is pinned once and kept.
    """

    def __init__(self, streams: CudaStreams) -> None:
        """Start without memory."""
        self._streams = streams
        self._free: list[Tensor] = []
        self._used: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def take(self, size_bytes: int) -> Tensor:
        """Return uint8 [at least size_bytes] that no copy reads; never wait for a copy."""
        while self._used and self._used[0][0].query():
            self._free.append(self._used.popleft()[1])
        for place, memory in enumerate(self._free):
            if len(memory) >= size_bytes:
                return self._free.pop(place)
        return self._streams.pinned(size_bytes)

    def give_back(self, event: torch.cuda.Event, memory: Tensor) -> None:
        """Put memory back into the pool, for reuse once the event has passed."""
        self._used.append((event, memory))

    def release(self, memory: Tensor) -> None:
        """Put memory that no copy reads back into the pool, for reuse at once."""
        self._free.append(memory)


class Block:
    """Arrays that go to the device as one block, in one copy; each is aligned."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Lay out host tensors one after the other."""
        self._tensors = tensors
        self._starts = [0]
        for tensor in tensors:
            self._starts.append(-(-(self._starts[-1] + tensor.nbytes) // _ALIGNED_BYTES) * _ALIGNED_BYTES)
        self.size_bytes = self._starts[-1]

    def write(self, memory: Tensor) -> None:
        """Copy the tensors into uint8 [at least size_bytes]."""
        for tensor, part in zip(self._tensors, self.parts(memory), strict=True):
            part.copy_(tensor)

    def parts(self, memory: Tensor) -> list[Tensor]:
        """Return the tensors as views of `memory`, uint8 [at least size_bytes] on the host or the device."""
        places = zip(self._tensors, self._starts, strict=False)
        return [
            memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in places
        ]


@dataclass
class _OnItsWay(Generic[BatchT]):
    """A batch whose copies are queued."""

    batch: BatchT
    copied: torch.cuda.Event
    tensors: list[Tensor]


class Placer:
    """Moves the batches of a loader to a device, one ahead of the consumer."""

    def __init__(self, streams: CudaStreams) -> None:
        """Open the stream of the copies."""
        self._streams = streams
        self._copies = streams.stream()
        self._pool = PinnedPool(streams)
        self._lent = Lent()

    def ahead(self, batches: Iterator[BatchT]) -> Generator[BatchT, None, None]:
        """Yield the batches on the device, each after the copy of the next batch has been queued.

        An error of `batches` is raised after the batches before it have been yielded.
        """
        waiting: _OnItsWay[BatchT] | None = None
        failure: BaseException | None = None
        while True:
            try:
                with self._streams.use(self._copies):  # a batch drawn on the device makes this stream wait
                    batch = next(batches)
            except StopIteration:
                break
            except Exception as error:  # the batch before it is complete, and is yielded first
                failure = error
                break
            fresh = self._begin(batch)
            del batch
            if waiting is not None:
                yield self._arrived(waiting)
            waiting = fresh
        if waiting is not None:
            yield self._arrived(waiting)
        if failure is not None:
            raise failure

    def _begin(self, batch: BatchT) -> _OnItsWay[BatchT]:
        tensors: list[Tensor] = []
        with self._streams.use(self._copies):
            placed: Any
            if isinstance(batch, Batch):
                placed = self._copy(batch, tensors)
            else:
                placed = PairedBatch(self._copy(batch.labeled, tensors), self._copy(batch.unlabeled, tensors))
            copied = self._copies.record_event()
        self._lent.keep(copied, batch)
        return _OnItsWay(placed, copied, tensors)

    def _copy(self, batch: Batch, tensors: list[Tensor]) -> Batch:
        """Queue the copies of a batch, and append its device tensors to `tensors`."""
        few = [one for one in (batch.labels, batch.index, batch.valid) if one is not None]
        views = batch.views
        if views[0].device.type == "cpu":
            views = tuple(self._streams.copy(view) for view in views)
        block = Block(few)
        memory = self._pool.take(block.size_bytes)
        block.write(memory)
        moved = self._streams.copy(memory[: block.size_bytes])
        self._pool.give_back(self._copies.record_event(), memory)
        index, valid = block.parts(moved)[-2:]
        labels = None if batch.labels is None else block.parts(moved)[0]
        tensors += [*views, moved]
        return Batch(views, labels, index, valid)

    def _arrived(self, waiting: _OnItsWay[BatchT]) -> BatchT:
        """Make the consumer's stream wait for the copies, and keep their memory until that stream is done."""
        stream = self._streams.current()
        stream.wait_event(waiting.copied)
        for tensor in waiting.tensors:
            self._streams.record(tensor, stream)
        return waiting.batch


Place = Callable[[Iterator[Any]], Generator[Any, None, None]]
"""Moves the finished batches of an epoch to the device."""


def stay(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """Yield the batches unchanged."""
    yield from batches


def place_on(device: torch.device) -> Place:
    """Return the function that moves batches to a device."""
    if device.type == "cuda":
        return Placer(CudaStreams(device)).ahead
    if device.type == "cpu":
        return stay

    def move(batches: Iterator[Any]) -> Generator[Any, None, None]:
        for batch in batches:
            yield _move_all(batch, device)

    return move


def _move_all(batch: Any, device: torch.device) -> Any:
    """Copy a batch in the consumer's thread, to a device without CUDA streams."""
    if isinstance(batch, PairedBatch):
        return PairedBatch(_move_all(batch.labeled, device), _move_all(batch.unlabeled, device))
    labels = None if batch.labels is None else batch.labels.to(device)
    views = tuple(view.to(device) for view in batch.views)
    return Batch(views, labels, batch.index.to(device), batch.valid.to(device))
