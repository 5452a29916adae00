"""From the memory of a loader to a device without a stop: pinned memory, a stream for copies, events.

The consumer's thread never waits for the device. Batch k + 1 is on its way while batch k is used: its views
are copied from pinned memory on a stream of their own, and labels, index and validity in one block behind
them. The stream of the consumer waits for the copies by an event, on the device. Memory of the host goes back
to its pool when the event behind its copy has passed, memory of the device when the consumer's stream is done
with it (`Tensor.record_stream`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from loaders.batch import Batch, PairedBatch

BatchT = TypeVar("BatchT", Batch, PairedBatch)

_ALIGNED_BYTES = 16  # which kernels may take for granted of an array in a block


class Event(Protocol):
    """A mark in a stream."""

    def query(self) -> bool:
        """Tell whether the device has passed it."""


class Stream(Protocol):
    """An order of work on a device."""

    def record_event(self) -> Event:
        """Set a mark behind the work so far."""

    def wait_event(self, event: Any) -> None:
        """Have later work wait for a mark, on the device."""


class Streams(Protocol):
    """What placing needs of a device; `CudaStreams`, or a stand-in of a test."""

    def stream(self) -> Any:
        """Return a new stream."""

    def current(self) -> Any:
        """Return the stream of the caller's work."""

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        """Queue what the block does in a stream."""

    def pinned(self, size_bytes: int) -> Tensor:
        """Return uint8 [size_bytes], memory of the host that the device can copy from by itself."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Queue a copy of memory of the host to the device; return its target, in the same layout."""

    def record(self, tensor: Tensor, stream: Any) -> None:
        """Keep memory of the device until a stream has done what is queued in it when the tensor is gone."""


class CudaStreams:
    """Streams of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Take `cuda` without a number for the current device."""
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)

    def stream(self) -> torch.cuda.Stream:
        """Return a new stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def current(self) -> torch.cuda.Stream:
        """Return the stream of the caller's work."""
        return torch.cuda.current_stream(self.device)

    def use(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """Queue what the block does in a stream."""
        return torch.cuda.stream(stream)

    def pinned(self, size_bytes: int) -> Tensor:
        """Return pinned memory."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, tensor: Tensor) -> Tensor:
        """Queue a copy to the device."""
        return tensor.to(self.device, non_blocking=True)

    def record(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        """See `Streams`."""
        tensor.record_stream(stream)


class Lent:
    """What the device still reads, each kept until the event behind it has passed."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._kept: deque[tuple[Event, Any]] = deque()

    def keep(self, event: Event, *what: Any) -> None:
        """Keep objects until an event has passed; let go of those whose time has come, without waiting."""
        self._kept.append((event, what))
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()

    def __len__(self) -> int:
        """Return how many events are still awaited."""
        return len(self._kept)


class PinnedPool:
    """Pinned memory of any size, used again once the event behind its last copy has passed.

    Pinning takes milliseconds and stops the device, so memory is pinned once and kept.
    """

    def __init__(self, streams: Streams) -> None:
        """Begin without memory."""
        self._streams = streams
        self._free: list[Tensor] = []
        self._used: deque[tuple[Event, Tensor]] = deque()
        self.num_made = 0

    def take(self, size_bytes: int) -> Tensor:
        """Return uint8 [at least size_bytes] that nothing reads any more; never waits."""
        while self._used and self._used[0][0].query():
            self._free.append(self._used.popleft()[1])
        for place, memory in enumerate(self._free):
            if len(memory) >= size_bytes:
                return self._free.pop(place)
        self.num_made += 1
        return self._streams.pinned(size_bytes)

    def give_back(self, event: Event, memory: Tensor) -> None:
        """Take memory back; it is lent again when the event has passed."""
        self._used.append((event, memory))


class Block:
    """Arrays that go to the device as one block: in one copy, each aligned."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Lay the tensors out, one behind the other; they are on the host."""
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
        """Return the tensors as they lie in uint8 [at least size_bytes], on the host or the device."""
        places = zip(self._tensors, self._starts, strict=False)
        return [
            memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in places
        ]


@dataclass
class _OnItsWay(Generic[BatchT]):
    """A batch whose copies are queued."""

    batch: BatchT
    copied: Event
    tensors: list[Tensor]


class Placer:
    """Moves the batches of a loader to a device, one ahead of the consumer."""

    def __init__(self, streams: Streams) -> None:
        """Open the stream of the copies."""
        self._streams = streams
        self._copies = streams.stream()
        self._pool = PinnedPool(streams)
        self._lent = Lent()

    def ahead(self, batches: Iterator[BatchT]) -> Generator[BatchT, None, None]:
        """Yield batches on the device, in their order; the copy of the next one is queued before.

        An error comes where it belongs: behind the batches before it.
        """
        waiting: _OnItsWay[BatchT] | None = None
        failure: BaseException | None = None
        while True:
            try:
                with self._streams.use(self._copies):  # which waits for batches that are drawn on the device
                    batch = next(batches)
            except StopIteration:
                break
            except Exception as error:  # whatever it is, the batch before it is whole
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
        """Queue the copies of a batch; those of its tensors that are on the device go to `tensors`."""
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
        """Have the consumer's stream wait for the copies, and the memory for the consumer's stream."""
        stream = self._streams.current()
        stream.wait_event(waiting.copied)
        for tensor in waiting.tensors:
            self._streams.record(tensor, stream)
        return waiting.batch


Place = Callable[[Iterator[Any]], Generator[Any, None, None]]
"""Moves an epoch's finished batches to the device."""


def stay(batches: Iterator[Any]) -> Generator[Any, None, None]:
    """Yield batches where they are."""
    yield from batches


def place_on(device: torch.device) -> Place:
    """Return what moves batches to a device."""
    if device.type == "cuda":
        return Placer(CudaStreams(device)).ahead
    if device.type == "cpu":
        return stay

    def move(batches: Iterator[Any]) -> Generator[Any, None, None]:
        for batch in batches:
            yield _move_all(batch, device)

    return move


def _move_all(batch: Any, device: torch.device) -> Any:
    """Copy a batch in the consumer's thread, where a device has no streams."""
    if isinstance(batch, PairedBatch):
        return PairedBatch(_move_all(batch.labeled, device), _move_all(batch.unlabeled, device))
    labels = None if batch.labels is None else batch.labels.to(device)
    views = tuple(view.to(device) for view in batch.views)
    return Batch(views, labels, batch.index.to(device), batch.valid.to(device))
