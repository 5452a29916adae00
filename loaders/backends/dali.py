"""The DALI backend: pipelines on the GPU (decoding included) or the CPU behind the same contract as ours.

A thread of its own speaks with DALI: it hands over the encoded bytes as slices of the memory-mapped shards
and the drawn parameters as arrays, and takes the views as tensors without a copy. An image that DALI cannot
decode invalidates its pipeline, so damaged rows are found and replaced before DALI sees them, and a pipeline
that dies of something else is built again for the batches under way.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.threads import WorkerPool
from loaders.backends.verified import VerifiedRows, are_pixels
from loaders.backends.work import Renderer, Request, Work, refuse_remote
from loaders.batch import Batch
from loaders.common.errors import LoaderError, UserError
from loaders.views.dali import IMAGES, DaliDType, build_pipeline, check_views, import_dali
from loaders.views.draw import draw


class DaliBackend:
    """Decodes and renders in DALI, on the GPU where batches are delivered there."""

    name = "dali"

    def refusal(self, work: Work) -> UserError | None:
        """Return why a work cannot be done: DALI is missing, or lacks an operation; see `Backend`."""
        remote = refuse_remote(self.name, work)
        if remote is not None:
            return remote
        try:
            import_dali()
            check_views(work.views)
            if work.options.dtype not in get_args(DaliDType):
                known = ", ".join(get_args(DaliDType))
                raise UserError(
                    f"backend dali: dtype: expected one of {known}, found {work.options.dtype}; use "
                    "backend='cpu'"
                )
            are_pixels(work.split)
        except UserError as error:
            return error
        return None

    def renderer(self, work: Work) -> DaliRenderer:
        """Return a renderer; see `Backend`."""
        renderer = DaliRenderer(work)
        work.crew.keep(renderer)
        return renderer

    def identity(self, work: Work) -> dict[str, str]:
        """Return what the batches depend on; see `Backend`."""
        return {"order": "full shuffle", "renderer": f"dali on {torch.device(work.options.device).type}"}


@dataclass(eq=False)
class _Job:
    """One batch on its way."""

    positions: NDArray[np.int64]  # [B] in the split
    epochs: NDArray[np.int64]  # [B]
    valid: NDArray[np.bool_]  # [B]
    dropped: bool = False  # nobody waits for it any more
    batch: Batch | None = None
    parts: dict[str, NDArray[Any]] = field(default_factory=dict)  # positions, rows and valid as delivered
    held: list[NDArray[np.uint8]] = field(default_factory=list)  # bytes that DALI reads


class PendingDaliBatch:
    """A batch that DALI is working on."""

    def __init__(self, renderer: DaliRenderer, job: _Job, begun: Future[None]) -> None:
        self._renderer = renderer
        self._job = job
        self._begun = begun

    def result(self, timeout_s: float) -> Batch:
        """Wait for the batch.

        Raises:
            LoaderError: DALI failed, or took longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        finished = self._renderer.finish(self._job)
        try:
            self._begun.result(timeout_s)
            return finished.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise LoaderError(
                f"a batch took longer than {timeout_s:g} s in DALI: the storage or a worker hangs; raise "
                "timeout_s if it is only slow"
            ) from None

    def cancel(self) -> None:
        """Give the batch up; what DALI has begun it finishes."""
        self._job.dropped = True
        self._begun.cancel()


class DaliRenderer(Renderer):
    """Renders batches of one stream in a DALI pipeline."""

    def __init__(self, work: Work) -> None:
        """Describe the pipeline; it is built with the first batch."""
        super().__init__(work.options)
        self.work = work
        self._rows = VerifiedRows(work)
        self.bad_rows = self._rows.bad_rows
        self._depth = work.options.prefetch + 1
        self._in_flight: deque[_Job] = deque()
        self._pipeline: Any = None
        device = torch.device(work.options.device)
        self._build = partial(
            build_pipeline,
            work.views,
            work.batch_size,
            work.crew.num_threads,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            dtype=cast(DaliDType, work.options.dtype),
            channels_last=work.options.channels_last,
            decoded=self._rows.are_pixels,
        )
        self._thread = WorkerPool(1, "sluice-dali")

    def submit(self, request: Request) -> PendingDaliBatch:
        """Begin a batch."""
        job = _Job(*request)
        return PendingDaliBatch(self, job, self._thread.submit(self._begin, job))

    def finish(self, job: _Job) -> Future[Batch]:
        """Have the thread wait until DALI has finished a job that was submitted."""
        return self._thread.submit(self._collect, job)

    def close(self, timeout_s: float) -> None:
        """Stop the thread and free the pipeline; a thread that hangs is left behind after `timeout_s`."""
        self._thread.close(timeout_s)
        self._in_flight.clear()
        self._pipeline = None

    def _begin(self, job: _Job) -> None:
        """Start a job; the oldest one is waited for where too many are under way."""
        if job.dropped:
            return
        while len(self._in_flight) >= self._depth:
            self._collect_oldest()
        self._in_flight.append(job)
        try:
            self._feed(job)
        except BaseException:
            self._in_flight.remove(job)
            raise

    def _feed(self, job: _Job) -> None:
        if self._pipeline is None:
            self._pipeline, self._feeds = self._build()
            self._pipeline.build()
        positions, shown, rows, valid = self._rows.resolve(job.positions, job.valid)
        job.parts = {"positions": positions, "rows": shown, "valid": valid}
        columns = self.work.split.pack.columns
        heights, widths = columns.height[rows].astype(np.int64), columns.width[rows].astype(np.int64)
        parameters = [
            draw(
                view, self.work.options.seed, job.epochs, rows, self.work.first_view + number, heights, widths
            )
            for number, view in enumerate(self.work.views)
        ]
        job.held = self._rows.images(rows)
        self._pipeline.feed_input(IMAGES, job.held)
        for feed in self._feeds:
            self._pipeline.feed_input(feed.name, feed.read(parameters[feed.view]))
        self._pipeline.schedule_run()

    def _collect(self, job: _Job) -> Batch:
        while job.batch is None:
            if job not in self._in_flight:
                raise LoaderError("the batch was given up with one before it that failed")
            self._collect_oldest()
        return job.batch

    def _collect_oldest(self) -> None:
        job = self._in_flight[0]
        try:
            outputs = self._pipeline.share_outputs()
        except RuntimeError as error:
            self._recover(error)
            return
        views = tuple(self._tensor(output) for output in outputs)
        self._pipeline.release_outputs()
        self._in_flight.popleft()
        job.held = []
        labels = (
            None if self.work.labels is None else torch.from_numpy(self.work.labels[job.parts["positions"]])
        )
        index, valid = torch.from_numpy(job.parts["rows"]), torch.from_numpy(job.parts["valid"])
        job.batch = Batch(views, labels, index, valid)

    def _recover(self, error: RuntimeError) -> None:
        """Find what killed the pipeline and run the batches under way again in a new one."""
        jobs = list(self._in_flight)
        self._in_flight.clear()
        self._pipeline = None
        rows = np.concatenate([self.work.split.rows(job.positions) for job in jobs])
        if not self._rows.find_undecodable(rows):
            raise LoaderError(f"DALI stopped: {error}") from error
        for job in jobs:
            self._begin(job)

    def _tensor(self, output: Any) -> Tensor:
        view: Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
        return view.permute(0, 3, 1, 2) if self.options.channels_last else view
