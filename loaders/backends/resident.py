"""The resident backend: a split decoded once into memory, from which every batch is drawn.

The pixels lie as uint8 planes [3, H, W] of each row, one row after the other, either in the memory of a CUDA
device, where `loaders.backends.device` draws the views, or in that of this machine, where the cpu backend's
kernels draw them. If no rank of a host has room for all pixels, `loaders.backends.spread` divides them among
the ranks. Order, random numbers, labels and the rule for damaged rows are the cpu backend's.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import ChainMap
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from loaders.backends.cpu import CHUNK_BYTES, Job, Worker
from loaders.backends.decoding import SLACK, EncodedRows
from loaders.backends.device import DeviceBackend, DeviceRenderer, Place, Rows
from loaders.backends.local_ranks import local_ranks, meet
from loaders.backends.spread import MEMORY_FRACTION, Part, allocate, find_room, load_parts
from loaders.backends.threads import MAY_HANG, result_until
from loaders.backends.work import Renderer, Work
from loaders.common.errors import UserError
from loaders.options import LoaderOptions
from loaders.order.fingerprint import pack_fingerprint

_ABSENT, _DAMAGED = -2, -1  # values in `starts` of rows without pixels


class ResidentBackend(DeviceBackend):
    """Decodes each row once and draws every batch from these pixels."""

    name = "resident"

    def refusal(self, work: Work) -> UserError | None:
        """Return the error for too many pixels, or that of `DeviceBackend`; see `Backend`."""
        if (refused := super().refusal(work)) is not None:
            return refused
        needed, (_, room) = pixel_bytes(work), find_room(work.options)
        if needed <= room:
            return None
        return UserError(
            f"backend resident: expected pixels of at most {room / 1e9:.3f} GB, {MEMORY_FRACTION:.0%} of the "
            f"memory of {work.options.device} on all ranks of this host, found {needed / 1e9:.3f} GB in the "
            f"{len(work.split)} images of split {work.split.name!r}; pack them smaller, or use backend='cpu'"
        )

    def renderer(self, work: Work) -> Renderer:
        """Return a renderer; the first one of a split decodes the whole split. See `Backend`."""
        rows = ResidentRenderer(work)
        if torch.device(work.options.device).type == "cpu":
            return rows
        renderer = DeviceRenderer(rows)
        work.crew.keep(renderer)
        return renderer


def pixel_bytes(work: Work) -> int:
    """Return the number of bytes that the pixels of a work's split take."""
    columns, rows = work.split.pack.columns, np.unique(work.split.rows(np.arange(len(work.split))))
    return int((3 * columns.height[rows].astype(np.int64) * columns.width[rows]).sum())


class ResidentPixels:
    """The decoded rows of a split.

    Attributes:
        parts: one uint8 tensor with the planes of all rows; one per rank if spread over CUDA devices.
        origins: int64 [parts], where each part begins among the bytes of the split's pixels.
        starts: int64 [rows of the pack], where each row begins among these bytes; negative where it has no
            pixels.
        reasons: what is wrong with each damaged row.
        spread: whether the ranks of the host decoded them together.
    """

    def __init__(self, rows: ResidentRenderer, spread: bool) -> None:
        """Decode the renderer's split in its crew's threads; with `spread`, together with the other ranks."""
        split = rows.work.split
        # A split may hold a row several times; it is decoded once.
        _, first = np.unique(split.rows(np.arange(len(split))), return_index=True)
        job = rows.job_of(np.sort(first))
        sizes = 3 * job.heights * job.widths
        places, total = np.cumsum(sizes) - sizes, int(sizes.sum())
        self.reasons: dict[int, str] = {}
        self.starts = np.full(len(split.pack), _ABSENT, np.int64)
        self.starts[job.rows] = places
        device = torch.empty(0, device=rows.work.options.device).device  # `cuda` becomes `cuda:N`
        self.spread = spread
        if not spread:
            part = Part(0, len(places), allocate(total + SLACK, device), 0)
            self._decode(rows, job, part, lambda: None)
            self.parts, self.origins = [part.memory], np.zeros(1, np.int64)
            return
        facts = pack_fingerprint(split.pack), split.row_ranges, rows.work.options.verify, device.type
        with meet(rows.work.options, *facts) as ranks:
            self.parts, origins = load_parts(
                ranks, device, places, total, lambda part: self._decode(rows, job, part, ranks.look)
            )
            self.reasons = dict(ChainMap(*ranks.exchange(self.reasons)))
        self.origins = np.array(origins)
        self.starts[list(self.reasons)] = _DAMAGED

    def holds(self, rows: NDArray[np.int64]) -> bool:
        """Tell whether each of these rows was decoded or found damaged."""
        return bool((self.starts[rows] != _ABSENT).all())

    def serve(self, options: LoaderOptions, spread: bool) -> bool:
        """Tell whether a loader may use these pixels instead of decoding the split again.

        With `spread`, it would decode together with the other ranks; it must then not reuse pixels that this
        rank decoded alone, because the other ranks wait for it. A part on another rank's device is gone when
        that rank ends, so several parts serve only ranks that were launched, and so train, together.
        """
        if not self.spread:
            return not spread
        return len(self.parts) == 1 or local_ranks(options)[1] > 1

    def addresses(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the addresses, int64 [B], of rows with these values of the attribute `starts`, int64 [B]."""
        parts = np.searchsorted(self.origins, starts, side="right") - 1
        bases = np.array([part.data_ptr() for part in self.parts]) - self.origins
        addresses: NDArray[np.int64] = bases[parts] + starts
        return addresses

    def _decode(self, renderer: ResidentRenderer, job: Job, part: Part, look: Callable[[], None]) -> None:
        """Decode the rows of a part; call `look` in between, which raises if another rank has failed."""
        crew, limit_s = renderer.work.crew, renderer.work.options.timeout_s
        chunks = self.starts[job.rows[part.first : part.last]] // CHUNK_BYTES
        edges = {part.first, *(part.first + 1 + np.flatnonzero(np.diff(chunks))).tolist(), part.last}
        under_way = [
            crew.threads.submit(self._load, renderer, job, *chunk, part) for chunk in pairwise(sorted(edges))
        ]
        for loaded in under_way:
            what = "backend resident: decoding a part of the split"
            result_until(loaded, time.monotonic() + limit_s, limit_s, what, MAY_HANG)
            look()
        if part.memory.is_cuda:  # other CUDA streams will read this memory
            torch.cuda.synchronize(part.memory.device)

    def _load(self, renderer: ResidentRenderer, job: Job, first: int, last: int, part: Part) -> None:
        """Decode rows first .. last - 1 of a job, one after the other, and copy them to their place."""
        worker, rows = renderer.worker(), renderer.locate_encoded(job, first, last)
        worker.arena.reserve(int(rows.pixel_bytes.sum()))
        places = np.cumsum(rows.pixel_bytes) - rows.pixel_bytes
        begin, at = int(self.starts[job.rows[first]]) - part.origin, 0
        while (bad := worker.decoder.decode(rows, at, places.copy(), worker.arena.planes)) < last - first:
            row = int(job.rows[first + bad])
            self.reasons[row], self.starts[row] = worker.decoder.reason(rows, bad), _DAMAGED
            at = bad + 1
            if at == last - first:
                break
        size = int(rows.pixel_bytes.sum())
        part.memory[begin : begin + size].copy_(torch.from_numpy(worker.arena.planes[:size]))


_held: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()
_loading = threading.Lock()


class ResidentRenderer(Rows):
    """The cpu backend's renderer, drawing from pixels that lie in memory."""

    def __init__(self, work: Work) -> None:
        """Decode the split, unless pixels that another loader holds can be used."""
        super().__init__(work)
        rows = work.split.rows(np.arange(len(work.split)))
        pack = work.split.pack
        key = (str(pack.path), pack_fingerprint(pack), work.options.device, str(work.options.verify))
        with _loading:
            alone, together = find_room(work.options)
            spread = alone < pixel_bytes(work) <= together
            if spread:
                gc.collect()  # frees unused pixels, so that the ranks agree on whether to reuse any
            same = [held for name, held in list(_held.items()) if name[: len(key)] == key]
            fit = (one for one in same if one.holds(rows) and one.serve(work.options, spread))
            found = next(fit, None)
            if found is None:
                found = _held[(*key, str(work.split.row_ranges))] = ResidentPixels(self, spread)
        self.pixels: ResidentPixels = found
        memory = found.parts[0]
        self._planes = np.empty(0, np.uint8) if memory.is_cuda else memory.numpy()

    def job_of(self, positions: NDArray[np.int64]) -> Job:
        """Return a job over the rows at `positions` of the split; it draws no view."""
        rows = self.work.split.rows(positions)
        heights, widths = self.sizes(rows)
        return Job(
            positions, positions, rows, np.ones(len(rows), np.bool_), heights, widths, (), [], iter(())
        )

    def locate_encoded(self, job: Job, first: int, last: int) -> EncodedRows:
        """Return where encoded rows first .. last - 1 lie; compare their checksums if `verify` is set."""
        rows = self.locate(job, first, last)
        self.verify(job, rows, first)
        return rows

    def place(self, job: Job) -> Place:
        """Return where the pixels of a job's rows lie on the device."""
        _, starts, _ = self.decode(job, self.locate_all(job), 0, self.worker())
        return Place(self.pixels.addresses(starts), False, self.pixels, job.heights, job.widths)

    def locate_all(self, job: Job) -> EncodedRows:
        """Return rows without addresses, since their encoded bytes are not needed; see `CpuRenderer`."""
        nothing = np.zeros(len(job.rows), np.int64)
        regions = np.stack([nothing, nothing, job.heights, job.widths], axis=1)
        whole = np.ones(len(nothing), np.bool_)
        return EncodedRows(
            nothing.astype(np.uint64), nothing, nothing.astype(np.uint8), job.heights, job.widths, regions,
            whole, None,
        )  # fmt: skip

    def decode(
        self, job: Job, rows: EncodedRows, first: int, worker: Worker
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Find decoded rows in memory, and replace damaged ones; see `CpuRenderer`."""
        starts = self.pixels.starts[job.rows[first : first + len(rows.sizes)]]
        for bad in np.flatnonzero(starts < 0).tolist():
            why = self.pixels.reasons[int(job.rows[first + bad])]
            rows.regions[bad] = self._replace(job, first + bad, starts[bad : bad + 1], worker, why)
        return self._planes, starts, rows.regions

    def _read_one(
        self, job: Job, i: int, start: NDArray[np.int64], worker: Worker
    ) -> NDArray[np.int64] | None:
        start[0] = self.pixels.starts[job.rows[i]]
        return None if start[0] < 0 else np.array([0, 0, job.heights[i], job.widths[i]])
