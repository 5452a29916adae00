"""The CPU backend, default and reference: threads that decode each image once and render its views.

A batch is cut into a few chunks, and every thread takes the next chunk until none is left. It decodes a
chunk in one call of compiled code, and then renders each view of the chunk in one more call, straight into
the batch's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.buffers import BufferPool, pinned_zeros
from loaders.backends.decoding import (
    MAX_PIXELS_PER_BYTE,
    Arena,
    Decoder,
    EncodedRows,
    decode_nothing,
    regions_of,
)
from loaders.backends.work import Backend, Pending, Renderer, Request, Work
from loaders.batch import Batch
from loaders.common.errors import BadImageError, LoaderError, UserError
from loaders.kernels.cache import first_use
from loaders.kernels.memory import aligned_zeros
from loaders.kernels.views.render import Scratch, make_scratch, render_chunk
from loaders.kernels.views.resample import table_taps
from loaders.options import DTypeName
from loaders.packs.shards.checksum import crc32_all
from loaders.views.draw import ViewParameters, draw
from loaders.views.policy import Standardize, ViewPolicy

CHUNK_BYTES = 8 << 20  # decoded pixels of a chunk; each chunk costs up to 0.3 ms in the interpreter
MAX_REPLACEMENTS = 64  # rows tried in place of a damaged one before giving up
_LARGE_BYTES = 64 << 20  # size of one view of a batch from which on `_buffer` waits for used memory

FIELDS = ("box", "window", "shift", "flip", "codes", "args")  # fields of ViewParameters, in their order

# Numba has no half-precision types, so the kernels write their bits to arrays of 16-bit integers.
_CARRIERS: dict[DTypeName, str] = {
    "float32": "float32",
    "float16": "int16",
    "bfloat16": "uint16",
    "uint8": "uint8",
}


@dataclass
class Job:
    """One batch in the making: what to render, and where the result goes."""

    positions: NDArray[np.int64]  # [B] in the split
    epochs: NDArray[np.int64]  # [B]
    rows: NDArray[np.int64]  # [B] in the pack
    valid: NDArray[np.bool_]  # [B]
    heights: NDArray[np.int64]  # [B]
    widths: NDArray[np.int64]  # [B]
    parameters: tuple[ViewParameters, ...]  # per view
    edges: list[int]  # chunk k is rows edges[k] .. edges[k + 1] - 1
    turns: Iterator[int]  # numbers of the chunks still to render; `next` is atomic
    locating: threading.Lock = field(default_factory=threading.Lock)
    reading: Future[EncodedRows] | None = None  # set where another library reads the rows
    under_way: list[Future[None]] = field(default_factory=list)  # the tasks of its threads
    located: EncodedRows | None = None  # all rows, since looking up a few takes as long
    out: tuple[NDArray[Any], ...] = ()  # per view, [B, 3 * R * R]
    cancelled: bool = False

    @property
    def said(self) -> str:
        """Name of the batch in error messages."""
        return f"a batch (rows {self.rows[0]} to {self.rows[-1]})"


@dataclass
class Worker:
    """The memory of one thread."""

    decoder: Decoder
    arena: Arena
    scratch: list[tuple[int, int, Scratch] | None]  # per view: taps, width, work space


class CpuBackend(Backend):
    """Decodes and renders in threads; reads every pack on this machine and renders every policy."""

    name = "cpu"

    def renderer(self, work: Work) -> CpuRenderer:
        """Return a renderer; see `Backend`."""
        return CpuRenderer(work)


class CpuRenderer(Renderer):
    """Renders batches of one stream in the threads of its crew."""

    def __init__(self, work: Work) -> None:
        """Load or compile the kernels that the views need."""
        super().__init__(work.options)
        self.work = work
        self.torch_dtype: torch.dtype = getattr(torch, work.options.dtype)
        self._dtype = np.dtype(_CARRIERS[work.options.dtype])
        self._crc32 = work.split.pack.columns.crc32 if work.options.verify else None
        self._pinned = torch.device(work.options.device).type == "cuda"
        self._local = threading.local()
        self._pools: dict[tuple[int, int], BufferPool] = {}
        self._gains = [normalization(view, self._dtype) for view in work.views]
        self._compile()

    def submit(self, request: Request) -> Pending:
        """Begin a batch."""
        job = self.job(request)
        self.begin(job)
        return Pending(
            job.under_way,
            job.said,
            lambda: self.why_late(job),
            lambda: self.collect(job),
            lambda: self.drop(job),
        )

    def begin(self, job: Job) -> None:
        """Start threads on a job."""
        helpers = min(self.work.crew.num_threads, len(job.edges) - 1)
        job.under_way = [self.work.crew.threads.submit(self._work, job) for _ in range(helpers)]

    def why_late(self, job: Job) -> str:
        """Return a clause that says, in an error, why a job may take too long."""
        return self.may_hang

    def job(self, request: Request) -> Job:
        """Draw the random parameters of a batch's views, and cut the batch into chunks."""
        work = self.work
        positions, epochs, valid = request
        rows = work.split.rows(positions)
        heights, widths = self.sizes(rows)
        parameters = tuple(
            draw(view, work.options.seed, epochs, rows, work.first_view + number, heights, widths)
            for number, view in enumerate(work.views)
        )
        edges = _chunk_edges(heights * widths * 3, work.crew.num_threads)
        return Job(positions, epochs, rows, valid.copy(), heights, widths, parameters, edges, count())

    def collect(self, job: Job) -> Batch:
        """Wrap a finished job's memory in tensors."""
        return self.batch(
            job,
            (self._tensor(out, view.resolution) for out, view in zip(job.out, self.work.views, strict=True)),
        )

    def batch(self, job: Job, views: Iterable[Tensor]) -> Batch:
        """Return a batch of these views; its labels, index and validity lie on the host."""
        labels = None
        if self.work.labels is not None:
            labels = torch.from_numpy(self.work.labels[job.positions])
        return Batch(tuple(views), labels, torch.from_numpy(job.rows), torch.from_numpy(job.valid))

    def drop(self, job: Job) -> None:
        """Cancel a job; chunks under way are finished."""
        job.cancelled = True
        for future in job.under_way:
            future.cancel()

    def sizes(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return heights and widths, int64 [B]; 1 x 1 where the index gives an impossible size.

        These sizes decide how much memory is taken before a byte of the image is read, so a size that the
        image's bytes cannot encode is not trusted.
        """
        columns = self.work.split.pack.columns
        heights, widths = columns.height[rows].astype(np.int64), columns.width[rows].astype(np.int64)
        absurd = heights.astype(np.float64) * widths > MAX_PIXELS_PER_BYTE * columns.size[rows].astype(
            np.int64
        )
        heights[absurd] = widths[absurd] = 1
        return heights, widths

    def _buffer(self, batch: int, number: int) -> NDArray[Any]:
        pool = self._pools.get((batch, number))
        if pool is None:
            size = 3 * self.work.views[number].resolution ** 2
            # Threads wait only for large buffers; a small one is allocated at once: it takes little memory.
            usual = self.options.prefetch + 1 if batch * size * self._dtype.itemsize >= _LARGE_BYTES else None
            allocate = aligned_zeros
            if self._pinned:  # two more, since a copied buffer stays in use until its event has passed
                usual, allocate = (usual + 2 if usual else None), pinned_zeros
            fresh = BufferPool((batch, size), self._dtype, usual, allocate)
            pool = self._pools.setdefault((batch, number), fresh)
        return pool.take()

    def _tensor(self, out: NDArray[Any], resolution: int) -> Tensor:
        tensor = torch.from_numpy(out).view(self.torch_dtype)
        return shaped(tensor, resolution, self.work.options.channels_last)

    def worker(self) -> Worker:
        """Return the memory of the calling thread."""
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._local.worker = Worker(Decoder(), Arena(), [None] * len(self.work.views))
        return worker

    def _work(self, job: Job) -> None:
        """Render chunks until none is left; one task per thread, since waking a thread costs 40 us."""
        try:
            while not job.cancelled and (chunk := next(job.turns)) < len(job.edges) - 1:
                self._render(job, self._located(job), job.edges[chunk], job.edges[chunk + 1])
        except BaseException:
            job.cancelled = True
            raise

    def _located(self, job: Job) -> EncodedRows:
        """Return where a job's bytes lie. The first call looks them up, and takes the memory of the views."""
        with job.locating:
            if job.located is None:
                job.out = tuple(self._buffer(len(job.rows), number) for number in range(len(self.work.views)))
                job.located = self.locate_all(job)
        return job.located

    def _render(self, job: Job, located: EncodedRows, first: int, last: int) -> None:
        worker = self.worker()
        planes, starts, regions = self.decode(job, located.part(first, last), first, worker)
        chunk = slice(first, last)
        for number in range(len(self.work.views)):
            p = ViewParameters(*(getattr(job.parameters[number], name)[chunk] for name in FIELDS))
            scratch = self._scratch(worker, number, p.box, int(regions[:, 3].max()))
            self._render_view(number, p, planes, starts, regions, scratch, job.out[number][chunk])

    def _render_view(
        self,
        number: int,
        p: ViewParameters,
        planes: NDArray[np.uint8],
        starts: NDArray[np.int64],
        regions: NDArray[np.int64],
        scratch: Scratch,
        out: NDArray[Any],
    ) -> None:
        view, (gain, bias) = self.work.views[number], self._gains[number]
        render_chunk(
            planes, starts, regions, p.box, p.window, p.shift, p.flip, view.interpolation == "bicubic",
            view.rounded, p.codes, p.args, gain, bias, scratch, view.resolution,
            self.work.options.channels_last, out,
        )  # fmt: skip

    def decode(
        self, job: Job, rows: EncodedRows, first: int, worker: Worker
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Decode K rows of a job, from number `first` on, one after the other; replace damaged rows.

        Returns:
            uint8 memory with the channel planes of the rows; int64 [K], where each row begins in it;
            int64 [K, 4], the region decoded of each row.
        """
        self.verify(job, rows, first)
        starts = np.zeros(len(rows.sizes), np.int64)
        worker.arena.reserve(int(rows.pixel_bytes.sum()))
        at = 0
        while (bad := worker.decoder.decode(rows, at, starts, worker.arena.planes)) < len(starts):
            why = worker.decoder.reason(rows, bad)
            rows.regions[bad] = self._replace(job, first + bad, starts[bad : bad + 1], worker, why)
            at = bad + 1
            if at == len(starts):
                break
            starts[at] = starts[bad] + 3 * rows.regions[bad, 2] * rows.regions[bad, 3]
            worker.arena.extend(int(starts[at]), int(rows.pixel_bytes[at:].sum()))
        return worker.arena.planes, starts, rows.regions

    def locate_all(self, job: Job) -> EncodedRows:
        """Locate the bytes of all rows of a job."""
        return self.locate(job, 0, len(job.rows))

    def locate(self, job: Job, first: int, last: int) -> EncodedRows:
        """Locate the bytes of rows first .. last - 1 of a job."""
        chunk = slice(first, last)
        rows, heights, widths = job.rows[chunk], job.heights[chunk], job.widths[chunk]
        addresses, sizes, keep = self.work.split.pack.locate(rows)
        regions = regions_of([p.window[chunk] for p in job.parameters], heights, widths)
        encodings = self.work.split.pack.columns.encoding[rows]
        whole = np.ones(len(rows), np.bool_)
        return EncodedRows(addresses, sizes, encodings, heights, widths, regions, whole, keep)

    def verify(self, job: Job, rows: EncodedRows, first: int) -> None:
        """With option `verify`, note in `whole` which rows match the index; `rows` begins at row `first`."""
        if self._crc32 is not None:
            numbers = job.rows[first : first + len(rows.sizes)]
            rows.whole[:] = crc32_all(rows.addresses, rows.sizes, rows.keep) == self._crc32[numbers]

    def _replace(
        self, job: Job, i: int, start: NDArray[np.int64], worker: Worker, reason: str
    ) -> NDArray[np.int64]:
        """Put the next readable row of the split in place of row i of the job.

        Args:
            start: int64 [1], where the row's pixels begin in memory; updated if the pixels of the other row
                lie elsewhere.

        Returns:
            int64 [4], the region decoded of the other row.
        """
        pack, row = self.work.split.pack, int(job.rows[i])
        what = (
            f"row {row} ({pack.key(row)}) in {pack.shard_path(int(pack.columns.shard[row])).name}: {reason}"
        )
        if not self.work.replace_bad:
            raise BadImageError(pack.path, what)
        self.bad_rows[row] = what
        for step in range(1, min(MAX_REPLACEMENTS, len(self.work.split)) + 1):
            position = (int(job.positions[i]) + step) % len(self.work.split)
            other = int(self.work.split.rows(np.array([position]))[0])
            job.rows[i] = other
            job.heights[i : i + 1], job.widths[i : i + 1] = self.sizes(job.rows[i : i + 1])
            self._redraw(job, i)
            region = self._read_one(job, i, start, worker)
            if region is None:
                continue
            if self.work.train:
                job.positions[i] = position
            else:  # evaluation counts each row once, in its own place, so the replacement is marked invalid
                job.rows[i], job.valid[i] = row, False
            return region
        raise LoaderError(f"{what}; none of the {MAX_REPLACEMENTS} rows after it can be read either")

    def _read_one(
        self, job: Job, i: int, start: NDArray[np.int64], worker: Worker
    ) -> NDArray[np.int64] | None:
        """Decode row i of a job and return its region, or None if it cannot be read; see `_replace`."""
        one = self.locate(job, i, i + 1)
        self.verify(job, one, i)
        worker.arena.extend(int(start[0]), int(one.pixel_bytes[0]))
        if worker.decoder.decode(one, 0, start, worker.arena.planes) == 0:
            return None
        region: NDArray[np.int64] = one.regions[0]
        return region

    def _redraw(self, job: Job, i: int) -> None:
        one = slice(i, i + 1)
        for number, view in enumerate(self.work.views):
            fresh = draw(
                view, self.work.options.seed, job.epochs[one], job.rows[one], self.work.first_view + number,
                job.heights[one], job.widths[one],
            )  # fmt: skip
            for name in FIELDS:
                getattr(job.parameters[number], name)[i] = getattr(fresh, name)[0]

    def _compile(self) -> None:
        """Load or compile the kernels now: the first batch's time limit should not include this."""
        nothing = np.empty(0, np.int64)
        planes = np.zeros(1, np.uint8)
        work = self.work
        kinds = {type(one).__name__ for view in work.views for one in (view.geometry, *view.operations)}
        with first_use("decoding", f"views as {self._dtype}", *sorted(kinds)):
            decode_nothing()
            for number, view in enumerate(work.views):
                p = draw(
                    view, work.options.seed, nothing, nothing, work.first_view + number, nothing, nothing
                )
                out = np.empty((0, 3 * view.resolution**2), self._dtype)
                regions = np.empty((0, 4), np.int64)
                self._render_view(number, p, planes, nothing, regions, make_scratch(1, 1, 1), out)

    def _scratch(self, worker: Worker, number: int, boxes: NDArray[np.float64], width: int) -> Scratch:
        view = self.work.views[number]
        taps = table_taps(float(boxes[:, 2:].max()) / view.resolution, view.interpolation == "bicubic")
        held = worker.scratch[number]
        if held is None or held[0] < taps or held[1] < width:
            taps, width = (taps, width) if held is None else (max(held[0], taps), max(held[1], width))
            held = worker.scratch[number] = (taps, width, make_scratch(view.resolution, taps, width))
        return held[2]


def shaped(pixels: Tensor, resolution: int, channels_last: bool) -> Tensor:
    """Return finished pixels as views [B, 3, R, R], without a copy."""
    if channels_last:
        return pixels.view(-1, resolution, resolution, 3).permute(0, 3, 1, 2)
    return pixels.view(-1, 3, resolution, resolution)


def normalization(view: ViewPolicy, dtype: np.dtype[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return gain and bias, float32 [3] each, that map values after a view's operations to delivered ones.

    Raises:
        UserError: `Standardize` with dtype uint8.
    """
    if isinstance(view.normalize, Standardize):
        if dtype == np.uint8:
            raise UserError(
                f"dtype of view {view.name!r}: expected floats, since Standardize centres values on 0, "
                "found uint8; use float32, float16 or bfloat16"
            )
        return np.ones(3, np.float32), np.zeros(3, np.float32)
    if dtype == np.uint8:  # adding a half makes truncation round
        return np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    if view.normalize is None:
        return np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32)
    mean, std = np.array(view.normalize.mean), np.array(view.normalize.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _chunk_edges(sizes: NDArray[np.int64], num_threads: int) -> list[int]:
    """Return the borders of chunks: each is at most about `CHUNK_BYTES`, and at most one thread's share.

    A thread that finishes early continues with the next batch.
    """
    most = max(1, -(-len(sizes) // num_threads))
    if sizes.sum() <= CHUNK_BYTES:
        return [*range(0, len(sizes), most), len(sizes)]
    by_size = (np.cumsum(sizes) - sizes) // CHUNK_BYTES
    by_count = np.arange(len(sizes)) // most
    new = (np.diff(by_size) != 0) | (np.diff(by_count) != 0)
    return [0, *(np.flatnonzero(new) + 1).tolist(), len(sizes)]
