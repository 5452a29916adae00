"""The hybrid backend: host threads decode, and device kernels draw the views.

It is for images that do not fit into the device's memory, on a machine whose processor is busy with decoding.
Threads decode the region of each image that its views need, and put the pixels in pinned memory. From there
a stream copies them to the device, for the kernels of `loaders.backends.device`. Order, random numbers,
labels and the rule for damaged rows are the cpu backend's.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.cpu import CpuRenderer, Job
from loaders.backends.decoding import EncodedRows
from loaders.backends.device import DeviceBackend, DeviceRenderer, Place, Rows
from loaders.backends.threads import result_until
from loaders.backends.work import Renderer, Request, Work
from loaders.placing import CudaStreams, PinnedPool


class HybridBackend(DeviceBackend):
    """Decodes on the host and draws on the device; if the device is the CPU, the same as the cpu backend."""

    name = "hybrid"

    def renderer(self, work: Work) -> Renderer:
        """Return a renderer; see `Backend`."""
        device = torch.device(work.options.device)
        if device.type == "cpu":
            return CpuRenderer(work)
        streams = CudaStreams(device)
        renderer = DeviceRenderer(HybridRows(work, streams), streams)
        work.crew.keep(renderer)
        return renderer


class Part(NamedTuple):
    """A decoded chunk of a batch.

    Attributes:
        first: number in the batch of the chunk's first row.
        memory: uint8 [at least size_bytes], pinned; for each row, the planes of its decoded region.
        size_bytes: bytes of `memory` in use.
        starts: int64 [K], where each row begins in `memory`.
        regions: int64 [K, 4], top, left, height and width of the decoded region of each row.
    """

    first: int
    memory: Tensor
    size_bytes: int
    starts: NDArray[np.int64]
    regions: NDArray[np.int64]


@dataclass
class HybridJob(Job):
    """A batch whose rows are being decoded."""

    parts: list[Part] = field(default_factory=list)


class HybridRows(Rows):
    """The cpu backend's renderer, made a source of pixels on a device."""

    def __init__(self, work: Work, streams: CudaStreams) -> None:
        """Use the streams of the `DeviceRenderer` that draws the views."""
        super().__init__(work)
        self._streams = streams
        self._memory = PinnedPool(streams)
        self._taking = threading.Lock()

    def job(self, request: Request) -> HybridJob:
        """Draw the random parameters of a batch's views, and let threads begin to decode its rows."""
        job = HybridJob(**vars(super().job(request)))
        self.begin(job)
        return job

    def place(self, job: Job) -> Place:
        """Wait until a job's rows are decoded, queue their copies, and return where they will lie."""
        assert isinstance(job, HybridJob)
        limit_s = self.options.timeout_s
        deadline = time.monotonic() + limit_s
        try:
            for future in job.under_way:
                result_until(future, deadline, limit_s, job.said, self.may_hang)
        except BaseException:
            self.drop(job)
            raise
        address, regions = np.empty(len(job.rows), np.int64), np.empty((len(job.rows), 4), np.int64)
        copies = []
        for part in job.parts:
            copies.append(self._streams.copy(part.memory[: part.size_bytes]))
            with self._taking:
                self._memory.give_back(self._streams.current().record_event(), part.memory)
            chunk = slice(part.first, part.first + len(part.starts))
            address[chunk], regions[chunk] = copies[-1].data_ptr() + part.starts, part.regions
        top, left, heights, widths = regions.T
        # Kernels count from the image's corner, which lies `top` rows and `left` pixels before the region's.
        return Place(address - top * widths - left, False, copies, heights, widths)

    def drop(self, job: Job) -> None:
        """Cancel a job, and take back its memory; see `CpuRenderer`."""
        assert isinstance(job, HybridJob)
        super().drop(job)
        with self._taking:
            while job.parts:
                self._memory.release(job.parts.pop().memory)

    def _located(self, job: Job) -> EncodedRows:
        with job.locating:
            if job.located is None:
                job.located = self.locate_all(job)
        return job.located

    def _render(self, job: Job, located: EncodedRows, first: int, last: int) -> None:
        """Decode rows first .. last - 1 of a job, and do not render them."""
        assert isinstance(job, HybridJob)
        planes, starts, regions = self.decode(job, located.part(first, last), first, self.worker())
        size = int(starts[-1] + 3 * regions[-1, 2] * regions[-1, 3])
        with self._taking:  # a power of two, so that few blocks are pinned
            memory = self._memory.take(1 << (size - 1).bit_length())
        np.copyto(memory.numpy()[:size], planes[:size])  # in this thread; torch would use several
        with self._taking:
            if job.cancelled:
                self._memory.release(memory)
            else:
                job.parts.append(Part(first, memory, size, starts, regions))
