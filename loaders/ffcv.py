"""Our views inside FFCV's own Loader, for any .beton, with or without a pack of ours.

order = EpochOrder(seed=0)
loader = Loader("images.beton", batch_size=256, num_workers=4, order=order, pipelines={
    "image": fused_views((presets.barlow_a(96), presets.barlow_b(96)), seed=0),
})
for views, labels in iterate(loader):
    ...
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.cpu import CpuRenderer
from loaders.backends.ffcv_operations import import_ffcv, iterate, operations
from loaders.backends.work import UNLABELED, Crew, Request, Work
from loaders.build import check_views
from loaders.common.checks import check_batch, check_whole
from loaders.kernels.encodings import ENCODING_RAW
from loaders.options import MAX_SEED, BadImages, DTypeName, LoaderOptions
from loaders.order import permutation
from loaders.packs import Split
from loaders.views.policy import ViewPolicy

__all__ = ["EpochOrder", "fused_views", "import_ffcv", "iterate"]


class _BetonRows:
    """Presents the images of one FFCV batch at a time as a split and its pack."""

    path = Path("the .beton")  # for messages; FFCV does not pass on the file's name

    def __init__(self) -> None:
        """Begin without images."""
        self.pack = self
        self.columns: Any = None

    def show(self, metadata: Any) -> None:
        """Fill the columns from the records [N] of FFCV's image field."""
        count = len(metadata)
        self.columns = _Columns(
            metadata["height"].copy(),  # contiguous, since kernels are compiled for contiguous arrays only
            metadata["width"].copy(),
            metadata["mode"].copy(),  # FFCV's codes for JPEG and pixels equal ours
            np.zeros(count, np.int64),
            np.zeros(count, np.uint8),
        )

    def begin(self, places: NDArray[np.uint64], samples: NDArray[np.int64]) -> None:
        """Begin a batch of `samples` [B], at `places` [B, 2] (address, bytes)."""
        self._samples = samples
        self.columns.size[samples] = places[:, 1]
        self._places = dict(zip(samples.tolist(), places.tolist(), strict=True))

    def __len__(self) -> int:
        """Return the number of images in the batch; a damaged one is replaced by another of them."""
        return len(self._samples)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample numbers at `positions` of the batch."""
        return self._samples[positions]

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64], Any]:
        """Find samples of the batch in FFCV's memory: addresses uint64 [K] and sizes int64 [K]."""
        places = np.array([self._places[row] for row in rows.tolist()], np.uint64).reshape(-1, 2)
        addresses, sizes = np.ascontiguousarray(places.T)
        return addresses, self._stored(rows, sizes.astype(np.int64)), None

    def _stored(self, rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sizes; for raw images, leave out bytes that may follow the pixels."""
        columns = self.columns
        pixels = 3 * columns.height[rows].astype(np.int64) * columns.width[rows].astype(np.int64)
        return np.where(columns.encoding[rows] == ENCODING_RAW, np.minimum(sizes, pixels), sizes)

    def key(self, row: int) -> str:
        """Return the name of a sample for messages."""
        return f"sample {row}"

    def shard_path(self, shard: int) -> Path:
        """Return the file's name for messages."""
        return self.path


@dataclass(frozen=True)
class _Columns:
    height: NDArray[np.uint16]
    width: NDArray[np.uint16]
    encoding: NDArray[np.uint8]
    size: NDArray[np.int64]  # bytes; set for the images of batches begun so far
    shard: NDArray[np.uint8]


def fused_views(
    views: tuple[ViewPolicy, ...],
    seed: int = 0,
    *,
    num_threads: int = 2,
    dtype: DTypeName = "float32",
    channels_last: bool = False,
    bad_images: BadImages = "replace",
    timeout_s: float = 120.0,
) -> list[Any]:
    """Return FFCV operations that turn an image field, JPEG or raw, into V views from one decode.

    The operations form the whole pipeline of the field, whose output is a tuple of V tensors [B, 3, R, R].
    The tensors may be kept: they are not part of FFCV's ring of buffers. Random numbers depend on the
    seed, on FFCV's count of epochs (set `loader.next_epoch` to resume) and on the sample's number.

    Args:
        num_threads: threads that decode and render.
        dtype: "float32", "float16" or "bfloat16" (normalised as the policy says), or "uint8".
        channels_last: deliver views in torch.channels_last.
        bad_images: "replace" puts the next readable image of the batch in place of a damaged one, which it
            notes in `bad_rows` of the last operation; "raise" makes the batch raise when it is used.
        timeout_s: time limit for a batch, in seconds.

    Raises:
        MissingBackendError: FFCV is not installed.
        UserError: an argument cannot be used.
    """
    check_views("views", views)
    options = LoaderOptions(
        seed=seed,
        num_threads=num_threads,
        dtype=dtype,
        channels_last=channels_last,
        bad_images=bad_images,
        timeout_s=timeout_s,
    )
    rows = _BetonRows()
    # Our plain loader uses the unlabelled stream too, so it draws the same views of an image.
    work = Work(cast(Split, rows), views, options, 0, Crew(options))
    renderer = CpuRenderer(work)
    epochs: WeakKeyDictionary[threading.Thread, int] = WeakKeyDictionary()
    lock = threading.Lock()

    def render(places: NDArray[np.uint64], batch_indices: NDArray[Any]) -> tuple[Tensor, ...]:
        thread = threading.current_thread()  # FFCV's iterator; its loader already counts the next epoch
        epoch = epochs.setdefault(thread, cast(Any, thread).loader.next_epoch - 1)
        count = len(batch_indices)
        with lock:
            rows.begin(places, batch_indices.astype(np.int64))
            pending = renderer.submit(
                Request(np.arange(count), np.full(count, epoch, np.int64), np.ones(count, np.bool_))
            )
            return pending.result(timeout_s).views

    made = operations(render, rows.show)
    made[-1].bad_rows = renderer.bad_rows
    return made


class EpochOrder:
    """Our order as FFCV's traversal: one permutation per epoch, divided among the ranks, resumable.

    To resume at step s of epoch e: `order.skip = (e, s)` and `loader.next_epoch = e`.

    Args:
        num_ranks: number of processes. Give FFCV's Loader `distributed=False` and the batch size per process.

    Raises:
        MissingBackendError: FFCV is not installed.
        UserError: an argument out of its range.
    """

    def __init__(self, seed: int = 0, rank: int = 0, num_ranks: int = 1) -> None:
        check_whole("seed", seed, 0, MAX_SEED)
        check_whole("num_ranks", num_ranks, 1)
        check_whole("rank", rank, 0, num_ranks - 1)
        import_ffcv()
        from ffcv.traversal_order.base import TraversalOrder

        TraversalOrder.register(EpochOrder)  # FFCV accepts only orders of its own class
        self.skip = (0, 0)
        self._seed = seed
        self._rank = rank
        self._num_ranks = num_ranks

    def __call__(self, loader: Any) -> EpochOrder:
        """Note the loader and return the order; FFCV calls this when it makes a loader."""
        self._loader = loader
        return self

    def sample_order(self, epoch: int) -> NDArray[np.uint64]:
        """Return the sample numbers of this rank's full batches of `epoch`, without those to skip."""
        indices, batch_size = self._loader.indices, self._loader.batch_size * self._num_ranks
        check_batch(len(indices), batch_size, self._num_ranks)
        first = self.skip[1] if epoch == self.skip[0] else 0
        steps = np.arange(first, len(indices) // batch_size, dtype=np.int64)
        share, _ = permutation.step_positions(0, len(indices), batch_size, self._rank, self._num_ranks, True)
        positions = (steps[:, None] * batch_size + share).ravel()
        rows = permutation.permute(positions, len(indices), self._seed, epoch, UNLABELED)
        return np.asarray(indices[rows], np.uint64)
