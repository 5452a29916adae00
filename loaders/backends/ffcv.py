"""The ffcv backend: FFCV's Loader reads a .beton of ours in our order, under the common contract."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from loaders.backends.cpu import CpuRenderer
from loaders.backends.ffcv_operations import ffcv_loader, import_ffcv, iterate, operations, stop
from loaders.backends.work import LABELED, Backend, Pending, Renderer, Request, RequestOf, Work
from loaders.batch import Batch
from loaders.common.errors import LoaderError, UserError
from loaders.options import check_backend
from loaders.packs import Split

_KEPT_EPOCHS = 8  # earlier orders kept alive, so that late calls of an abandoned epoch find their order


def find_shard(split: Split) -> int:
    """Return the number of the shard that holds the whole split.

    Raises:
        MissingBackendError: FFCV is not installed.
        UserError: the pack has another format, or the split lies in several shards.
    """
    check_backend("ffcv", split.pack.manifest.shard_format)
    shards = np.unique(split.pack.columns.shard[split.rows(np.arange(len(split)))])
    if len(shards) > 1:
        raise UserError(
            f"backend ffcv: expected split {split.name!r} in one .beton, found {len(shards)}; pack with a "
            "larger --shard-size-mb, or use backend='cpu', which reads all of them"
        )
    return int(shards[0])


class FfcvBackend(Backend):
    """FFCV's Loader walks the epoch; its thread has the cpu backend's renderer make each batch."""

    name = "ffcv"

    def refusal(self, work: Work) -> UserError | None:
        """Return the error if FFCV is missing or cannot read the work; see `Backend`."""
        if (refused := super().refusal(work)) is not None:
            return refused
        if work.stream == LABELED:
            return UserError(
                "backend ffcv: expected one stream, since FFCV's Loader walks one order; found two; use "
                "backend='cpu', which reads the same packs"
            )
        try:
            import_ffcv()
            find_shard(work.split)
        except UserError as error:
            return error
        return None

    def renderer(self, work: Work) -> FfcvRenderer:
        """Return a renderer; see `Backend`."""
        renderer = FfcvRenderer(work)
        work.crew.keep(renderer)
        return renderer


class FfcvRenderer(Renderer):
    """Yields the batches of one split through FFCV's own Loader."""

    def __init__(self, work: Work) -> None:
        """Make FFCV's Loader, which compiles its stage for this file."""
        super().__init__(work.options)
        self._cpu = CpuRenderer(work)
        self.bad_rows = self._cpu.bad_rows
        split, shard = work.split, find_shard(work.split)
        self._split = split
        self._first_row = int(np.searchsorted(split.pack.columns.shard, shard))
        self._wanted: tuple[range, RequestOf] | None = None  # steps and requests of the epoch to begin
        # Of the latest epochs: order of samples, steps, requests.
        self._begun: list[tuple[NDArray[np.uint64], range, RequestOf]] = []
        self._under_way: WeakSet[Any] = WeakSet()  # FFCV's iterators
        self._rank_batch = work.batch_size
        self._ffcv = ffcv_loader(
            split.pack.shard_path(shard),
            self._rank_batch,
            max(1, work.options.prefetch),
            operations(self._render),
            self._next_order,
        )

    def submit(self, request: Request) -> Pending:
        """Begin a batch outside FFCV's order."""
        return self._cpu.submit(request)

    def walk(self, steps: range, request_of: RequestOf) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch's steps in their order; see `Renderer`."""
        if not steps:
            return
        self._wanted = steps, request_of
        num_steps = 0
        for (batch,) in iterate(self._ffcv, self.options.timeout_s, self._under_way.add):
            num_steps += 1
            yield batch
        if num_steps < len(steps):  # an epoch that ends early is an error
            raise LoaderError(f"FFCV ended after {num_steps} batches of {len(steps)}")

    def close(self, timeout_s: float) -> None:
        """Stop FFCV's threads."""
        for under_way in list(self._under_way):
            stop(under_way, timeout_s)

    def _next_order(self) -> NDArray[np.uint64]:
        """Return the order of the epoch that begins, and note it with the epoch's steps and requests."""
        if self._wanted is None:  # FFCV also calls this when it makes its Loader, to count samples
            return np.arange(len(self._split), dtype=np.uint64)
        steps, request_of = self._wanted
        positions = np.concatenate([request_of(step).positions for step in steps])
        samples = (self._split.rows(positions) - self._first_row).astype(np.uint64)
        self._begun = [*self._begun[-_KEPT_EPOCHS:], (samples, steps, request_of)]
        return samples

    def _render(self, places: NDArray[np.uint64], batch_indices: NDArray[Any]) -> Batch:
        """Render one batch for FFCV's thread; the address of FFCV's slice of an order tells which one."""
        del places  # the renderer reads the same bytes through the pack, where it can replace a damaged row
        start = batch_indices.ctypes.data
        for samples, steps, request_of in self._begun:
            offset = start - samples.ctypes.data
            if 0 <= offset < samples.nbytes:
                request = request_of(steps[offset // samples.itemsize // self._rank_batch])
                return self._cpu.submit(request).result(self.options.timeout_s)
        raise LoaderError("FFCV requested samples that belong to no epoch under way")
