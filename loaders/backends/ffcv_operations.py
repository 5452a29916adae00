"""FFCV's side: its Loader, operations that hand its batches to our renderer, and a safe iterator.

FFCV compiles its decoders into its own loop, one image after another. Here that loop at most finds where the
encoded bytes lie; the next operation, which FFCV calls once per batch, renders the whole batch. FFCV's
iterator waits forever when an exception ends its thread, so our operations raise nothing in that thread: the
consumer gets a stand-in for a failed batch, which raises when it is used.
"""

from __future__ import annotations

import queue
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.ffcv_memory import describe_memory_apart
from loaders.common.errors import LoaderError
from loaders.options import missing_backend


def import_ffcv() -> Any:
    """Import FFCV, kept from changing numba types that other compiled code shares.

    Raises:
        MissingBackendError: FFCV cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # FFCV still imports distutils
            import ffcv
            import ffcv.loader
    except ImportError as error:
        raise missing_backend("ffcv", error) from None
    describe_memory_apart()
    return ffcv


class FailedBatch:
    """Stands in for the views of a failed batch; iteration, indexing and `len` raise the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Tensor]:
        """Raise the error."""
        raise self.error

    def __getitem__(self, number: int) -> Tensor:
        """Raise the error."""
        raise self.error

    def __len__(self) -> int:
        """Raise the error."""
        raise self.error


def _locate_nothing(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
    return destination


Render = Callable[[NDArray[np.uint64], NDArray[Any]], Any]
"""Maps places uint64 [B, 2] (address, bytes) and sample numbers [B] to the output of the pipeline."""


@cache
def _operation_classes() -> tuple[type, type]:
    """Return our two FFCV operations; their base classes exist only where FFCV is installed."""
    import_ffcv()
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation

    class Locate(SimpleRGBImageDecoder):  # type: ignore[misc]
        """Finds the encoded bytes of each image in FFCV's compiled stage; does nothing unless `asked`."""

        def __init__(self, asked: bool) -> None:
            super().__init__()
            self._asked = asked

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
            """Declare the output: address and number of bytes of each image."""
            return previous_state, AllocationQuery((2,), np.dtype("<u8"))

        def generate_code(self) -> Callable[..., Any]:
            """Return the loop over a batch."""
            read = self.memory_read

            def locate(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
                for i in range(len(batch_indices)):
                    data = read(metadata[batch_indices[i]]["data_ptr"], storage_state)
                    destination[i, 0] = data.ctypes.data
                    destination[i, 1] = data.size
                return destination[: len(batch_indices)]

            return locate if self._asked else _locate_nothing

    class RenderViews(Operation):  # type: ignore[misc]
        """Calls `render` for each batch, in FFCV's thread but outside its compiled stage."""

        def __init__(self, render: Render, accept: Callable[[Any], None] | None) -> None:
            super().__init__()
            self._render = render
            self._accept = accept

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
            """Leave the compiled stage; the memory comes from the renderer's own pool."""
            if self._accept is not None:
                self._accept(self.metadata)
            return replace(previous_state, jit_mode=False), None

        def generate_code(self) -> Callable[..., Any]:
            """Return what FFCV calls for each batch."""
            render = self._render

            def run(places: NDArray[np.uint64], _memory: None, batch_indices: NDArray[Any]) -> Any:
                try:
                    return render(places, batch_indices)
                except Exception as error:
                    return FailedBatch(error)

            run.with_indices = True  # type: ignore[attr-defined]
            return run

    return Locate, RenderViews


def operations(render: Render, accept: Callable[[Any], None] | None = None) -> list[Any]:
    """Return the FFCV operations that locate a batch of images and call `render` with it.

    Args:
        render: makes the pipeline's output; what it raises reaches the consumer.
        accept: called with the records of the image field when FFCV has read them. None for a `render` that
            ignores its `places`: they are then not looked up, and FFCV has less to compile.
    """
    locate, render_views = _operation_classes()
    return [locate(accept is not None), render_views(render, accept)]


class _OrderOfOurs:
    """A traversal order that gets the samples of each epoch from a function."""

    def __init__(self, next_order: Callable[[], NDArray[np.uint64]]) -> None:
        self._next_order = next_order

    def __call__(self, loader: Any) -> _OrderOfOurs:
        return self

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        return self._next_order()


def ffcv_loader(
    path: Path,
    batch_size: int,
    batches_ahead: int,
    image_operations: list[Any],
    next_order: Callable[[], NDArray[np.uint64]],
) -> Any:
    """Return FFCV's Loader of the images of a .beton.

    Args:
        path: path of the .beton, whose fields are `image` and `label`.
        next_order: returns the samples of the epoch that begins, uint64 [K].
    """
    ffcv = import_ffcv()
    from ffcv.traversal_order.base import TraversalOrder

    TraversalOrder.register(_OrderOfOurs)  # FFCV accepts only orders of its own class
    return ffcv.loader.Loader(
        str(path),
        batch_size=batch_size,
        # FFCV sets the threads of torch and numba to `num_workers`: keep torch's number, up to numba's limit.
        num_workers=min(torch.get_num_threads(), cast(Any, numba.config).NUMBA_NUM_THREADS),
        os_cache=True,
        order=_OrderOfOurs(next_order),
        seed=0,
        drop_last=False,
        batches_ahead=batches_ahead,
        pipelines={"image": image_operations, "label": None},
    )


def iterate(
    loader: Any, timeout_s: float = 120.0, begun: Callable[[Any], None] = lambda epoch: None
) -> Iterator[Any]:
    """Yield the batches of an FFCV Loader; a dead or hanging thread of FFCV is an error, not a hang.

    Args:
        loader: an `ffcv.loader.Loader` with any pipelines.
        begun: called with FFCV's iterator, so that the caller can `stop` it.

    Raises:
        LoaderError: FFCV's thread died or took too long. The error of a `FailedBatch` is raised unchanged.
    """
    epoch = iter(loader)
    begun(epoch)
    try:
        while True:
            _wait(epoch, timeout_s)
            try:
                batch = next(epoch)
            except StopIteration:
                return
            for part in batch:
                if isinstance(part, FailedBatch):
                    raise part.error
            yield batch
    finally:
        stop(epoch, timeout_s)


def stop(epoch: Any, timeout_s: float) -> None:
    """End the thread of an FFCV iterator within a time limit.

    FFCV's own `close` is not enough: a thread that has reached its end would wait forever to hand over a
    batch that nobody takes.
    """
    epoch.iter_ixes = iter(())  # the thread ends after the batch under way
    epoch.close()
    deadline = time.monotonic() + timeout_s
    while epoch.is_alive() and time.monotonic() < deadline:
        with suppress(queue.Empty):
            epoch.output_queue.get(timeout=0.005)


def _wait(epoch: Any, timeout_s: float) -> None:
    """Wait until the queue of an FFCV iterator holds something."""
    deadline = time.monotonic() + timeout_s
    batches = epoch.output_queue
    while batches.empty():
        alive = epoch.is_alive()
        with batches.not_empty:
            batches.not_empty.wait_for(lambda: len(batches.queue) > 0, timeout=0.1)
        if batches.empty() and not alive:
            raise LoaderError("FFCV's thread died; the exception that killed it is on stderr")
        if batches.empty() and time.monotonic() > deadline:
            raise LoaderError(
                f"a batch took longer than {timeout_s:g} s in FFCV: the storage or a worker hangs; raise "
                "timeout_s if it is only slow"
            )
