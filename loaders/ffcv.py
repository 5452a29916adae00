"""FFCV with our kernels: V views from one decode inside FFCV's own Loader, with or without a pack of ours.

    Loader("images.beton", batch_size=256, num_workers=4, order=EpochOrder(seed=0),
           pipelines={"image": fused_views((presets.barlow_a(96), presets.barlow_b(96)), seed=0)})

FFCV compiles its decoders into its own loop, one image after another. Here its loop only finds where the
encoded bytes lie; the next operation, which FFCV calls once per batch, hands them to the cpu backend's
threads. FFCV's iterator waits for ever when its thread dies of an exception, so nothing is raised in there:
a failed batch travels to the consumer and raises when it is used.
"""

from __future__ import annotations

import ctypes
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders import order
from loaders.cpu import CpuRenderer, DTypeName
from loaders.decode import CorruptImageError, decode_jpeg_into
from loaders.epochs import UNLABELED
from loaders.errors import LoaderError, MissingBackendError
from loaders.packs import Split
from loaders.views.policy import ViewPolicy

_JPEG, _RAW = 0, 1  # modes of FFCV's image field


def import_ffcv() -> Any:
    """Return the package `ffcv`.

    Raises:
        MissingBackendError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it still imports distutils
            import ffcv
            import ffcv.loader
    except ImportError as error:
        raise MissingBackendError(
            f"backend ffcv: ffcv cannot be imported ({error}); install it with 'make ffcv', or use "
            "backend='cpu', which reads the same packs"
        ) from None
    return ffcv


class FailedBatch:
    """What stands in the place of a batch's views when they could not be made; using it raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Tensor]:
        """Raise what went wrong."""
        raise self.error

    def __getitem__(self, number: int) -> Tensor:
        """Raise what went wrong."""
        raise self.error

    def __len__(self) -> int:
        """Raise what went wrong."""
        raise self.error


Render = Callable[[NDArray[np.uint64], NDArray[Any]], Any]
"""From places uint64 [B, 2] (address, bytes) and sample numbers [B] to what the pipeline delivers."""


@cache
def _operation_classes() -> tuple[type, type]:
    """Return our two FFCV operations; their base classes exist only where FFCV is installed."""
    import_ffcv()
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation

    class Locate(SimpleRGBImageDecoder):  # type: ignore[misc]
        """Finds the encoded bytes of each image, in FFCV's compiled stage."""

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
            """Ask for two numbers per image."""
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

            return locate

    class RenderViews(Operation):  # type: ignore[misc]
        """Decodes and renders a located batch, in FFCV's thread but outside its compiled stage."""

        def __init__(self, render: Render, accept: Callable[[Any], None]) -> None:
            super().__init__()
            self._render = render
            self._accept = accept

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
            """Leave the compiled stage; memory comes from the renderer's own pool."""
            from dataclasses import replace

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


def operations(render: Render, accept: Callable[[Any], None] = lambda metadata: None) -> list[Any]:
    """Return the FFCV operations that locate a batch of images and call `render` with it.

    Args:
        render: makes the pipeline's output; what it raises reaches the consumer.
        accept: is given the image field's records when FFCV has read them.
    """
    locate, render_views = _operation_classes()
    return [locate(), render_views(render, accept)]


class _OrderOfOurs:
    """A traversal that asks a function for the samples of each epoch."""

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
        path: of the .beton, whose fields are `image` and `label`.
        batch_size: images of a batch.
        batches_ahead: batches that wait for the consumer.
        image_operations: what happens to the images.
        next_order: gives the samples of the epoch that begins, uint64 [K].
    """
    ffcv = import_ffcv()
    from ffcv.traversal_order.base import TraversalOrder

    TraversalOrder.register(_OrderOfOurs)  # FFCV takes an order only of its own kind
    return ffcv.loader.Loader(
        str(path),
        batch_size=batch_size,
        # FFCV also gives this number to torch: let it be the one that torch has.
        num_workers=min(torch.get_num_threads(), cast(Any, numba.config).NUMBA_NUM_THREADS),
        os_cache=True,
        order=_OrderOfOurs(next_order),
        seed=0,
        drop_last=False,
        batches_ahead=batches_ahead,
        pipelines={"image": image_operations, "label": None},
    )


# ---------------------------------------------------------------- for any .beton


class _BetonRenderer(CpuRenderer):
    """The cpu backend on the images of one FFCV batch at a time, which it takes for a split and its pack."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cast(Split, self), **options)
        self.pack = self
        self.columns: Any = None

    def show(self, metadata: Any) -> None:
        """Learn the image field's records, [N]."""
        self.columns = _Columns(metadata["height"], metadata["width"], np.zeros(len(metadata), np.uint8))
        self._modes = metadata["mode"].copy()

    def begin(self, places: NDArray[np.uint64], samples: NDArray[np.int64]) -> None:
        """Take up a batch."""
        self._samples = samples
        self._places = dict(zip(samples.tolist(), places.tolist(), strict=True))

    def __len__(self) -> int:
        """Return the images of the batch; the next one in it stands in for a damaged one."""
        return len(self._samples)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample numbers at `positions` of the batch."""
        return self._samples[positions]

    def view(self, row: int) -> NDArray[np.uint8]:
        """Return the stored bytes of a sample of the batch."""
        address, size = self._places[row]
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def key(self, row: int) -> str:
        """Name a sample."""
        return f"sample {row}"

    def shard_path(self, shard: int) -> Path:
        """Name the file."""
        return Path("the .beton")

    def _decode_row(self, job: Any, i: int, out: NDArray[np.uint8]) -> None:
        row, data = int(job.rows[i]), self.view(int(job.rows[i]))
        if self._modes[row] == _JPEG:
            decode_jpeg_into(data, int(job.heights[i]), int(job.widths[i]), out)
        elif self._modes[row] == _RAW and len(data) >= len(out):
            out[:] = data[: len(out)]
        else:
            raise CorruptImageError(f"image mode {self._modes[row]} with {len(data)} bytes")


@dataclass(frozen=True)
class _Columns:
    height: NDArray[np.uint16]
    width: NDArray[np.uint16]
    shard: NDArray[np.uint8]


def fused_views(
    views: tuple[ViewPolicy, ...],
    seed: int = 0,
    *,
    num_threads: int = 2,
    dtype: DTypeName = "float32",
    channels_last: bool = False,
    bad_images: str = "replace",
    timeout_s: float = 120.0,
) -> list[Any]:
    """Return FFCV operations that turn an image field, JPEG or raw, into V views from one decode.

    They stand alone as the pipeline of that field, whose output is then a tuple of V tensors [B, 3, R, R].
    The tensors may be kept: they are no part of FFCV's ring of buffers. Random numbers depend on the seed,
    on FFCV's count of epochs (set `loader.next_epoch` to resume) and on the number of the sample.

    Args:
        views: one policy per view.
        seed: of the views.
        num_threads: threads that decode and render.
        dtype: "float32" (normalised as the policy says) or "uint8".
        channels_last: deliver views in torch.channels_last.
        bad_images: "replace" puts the next readable image of the batch in place of a damaged one and notes
            it in `bad_rows` of the last operation; "raise" makes the batch raise when it is used.
        timeout_s: seconds that a batch may take.

    Raises:
        MissingBackendError: FFCV is not installed.
    """
    renderer = _BetonRenderer(
        views=views,
        seed=seed,
        first_view=256,  # as in a plain loader of ours: the same image looks the same in both
        labels=None,
        executor=ThreadPoolExecutor(num_threads, thread_name_prefix="sluice-ffcv"),
        num_threads=num_threads,
        dtype=dtype,
        channels_last=channels_last,
        replace_bad=bad_images == "replace",
        train=True,
    )
    epochs: WeakKeyDictionary[threading.Thread, int] = WeakKeyDictionary()
    lock = threading.Lock()

    def render(places: NDArray[np.uint64], batch_indices: NDArray[Any]) -> tuple[Tensor, ...]:
        thread = threading.current_thread()  # FFCV's iterator is its own thread and counts one ahead
        epoch = epochs.setdefault(thread, cast(Any, thread).loader.next_epoch - 1)
        count = len(batch_indices)
        with lock:
            renderer.begin(places, batch_indices.astype(np.int64))
            pending = renderer.submit(
                np.arange(count), np.full(count, epoch, np.int64), np.ones(count, np.bool_)
            )
            return pending.result(timeout_s).views

    made = operations(render, renderer.show)
    made[-1].bad_rows = renderer.bad_rows
    return made


class EpochOrder:
    """Our order as FFCV's traversal: one permutation per epoch, cut over ranks, resumable.

    To resume at step s of epoch e: `order.skip = (e, s)` and `loader.next_epoch = e`.

    Args:
        seed: of the order.
        rank: this process.
        num_ranks: number of processes; the loader's `batch_size` is that of one, its `distributed` is False.
    """

    def __init__(self, seed: int = 0, rank: int = 0, num_ranks: int = 1) -> None:
        import_ffcv()
        from ffcv.traversal_order.base import TraversalOrder

        TraversalOrder.register(EpochOrder)  # FFCV takes an order only of its own kind
        self.skip = (0, 0)
        self._seed = seed
        self._rank = rank
        self._num_ranks = num_ranks

    def __call__(self, loader: Any) -> EpochOrder:
        """Take up a loader, as FFCV asks of an order."""
        self._loader = loader
        return self

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        """Return the sample numbers of this rank's whole batches of `epoch`."""
        indices, batch_size = self._loader.indices, self._loader.batch_size * self._num_ranks
        order.check_batch(len(indices), batch_size, self._num_ranks)
        first = self.skip[1] if epoch == self.skip[0] else 0
        steps = np.arange(first, len(indices) // batch_size, dtype=np.int64)
        share, _ = order.step_positions(0, len(indices), batch_size, self._rank, self._num_ranks, True)
        positions = (steps[:, None] * batch_size + share).ravel()
        rows = order.permute(positions, len(indices), self._seed, epoch, UNLABELED)
        return np.asarray(indices[rows], np.uint64)


def iterate(loader: Any, timeout_s: float = 120.0) -> Iterator[Any]:
    """Yield the batches of an FFCV Loader; a dead or hanging thread of FFCV is an error, not a hang.

    Args:
        loader: an `ffcv.loader.Loader` with any pipelines.
        timeout_s: seconds that a batch may take.

    Raises:
        LoaderError: FFCV's thread died or took too long.
    """
    epoch = iter(loader)
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
        epoch.close()


def _wait(epoch: Any, timeout_s: float) -> None:
    """Wait until an iterator of FFCV has something in its queue."""
    deadline = time.monotonic() + timeout_s
    queue = epoch.output_queue
    while queue.empty():
        alive = epoch.is_alive()
        with queue.not_empty:
            queue.not_empty.wait_for(lambda: len(queue.queue) > 0, timeout=0.1)
        if queue.empty() and not alive:
            raise LoaderError("FFCV's thread died; the exception that killed it stands on the error output")
        if queue.empty() and time.monotonic() > deadline:
            raise LoaderError(
                f"a batch took longer than {timeout_s:g} s in FFCV: the storage or a worker hangs; raise "
                "timeout_s if it is only slow"
            )
