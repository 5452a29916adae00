"""The DALI backend: DALI decodes and our kernels draw the views, under the contract of every backend.

A separate thread calls DALI. It passes the encoded bytes as slices of the memory-mapped shards, and leaves
the pixels where DALI has put them. Views are then drawn by the cpu backend, or on a GPU by
`loaders.backends.device`. So every policy that these draw is available, with the same random numbers.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.cpu import Job
from loaders.backends.decoding import EncodedRows
from loaders.backends.device import DeviceBackend, DeviceRenderer, Place, Rows
from loaders.backends.threads import WorkerPool, result_until
from loaders.backends.work import Renderer, Request, Work
from loaders.common.errors import LoaderError, MissingBackendError, UserError
from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.packs.shards.checksum import crc32_all
from loaders.placing import Block, CudaStreams, PinnedPool
from loaders.views.dali import IMAGES, build_decoder, import_dali


class DaliBackend(DeviceBackend):
    """DALI decodes, on the GPU if batches are delivered there; our kernels draw the views."""

    name = "dali"

    def refusal(self, work: Work) -> UserError | None:
        """Return the error if DALI is missing, or that of `DeviceBackend`; see `Backend`."""
        try:
            import_dali()
        except MissingBackendError as error:
            return error
        return super().refusal(work)

    def renderer(self, work: Work) -> Renderer:
        """Return a renderer; see `Backend`."""
        device = torch.device(work.options.device)
        streams = CudaStreams(device) if device.type == "cuda" else None
        rows = DaliRenderer(work, streams)
        work.crew.keep(rows)
        if streams is None:
            return rows
        renderer = DeviceRenderer(rows, streams)
        work.crew.keep(renderer)
        return renderer

    def identity(self, work: Work) -> dict[str, str]:
        """Name DALI and the kind of device as the renderer; see `Backend`."""
        return super().identity(work) | {"renderer": f"dali on {torch.device(work.options.device).type}"}


class Decoded(NamedTuple):
    """Pixels that DALI has decoded. DALI's memory lives as long as this object.

    Attributes:
        outputs: DALI's list of images.
        places: int64 [J], the numbers of their rows in the batch.
        keep: keeps the encoded bytes of the other rows alive.
    """

    outputs: Any
    places: NDArray[np.int64]
    keep: Any


class DaliDecoder:
    """A DALI pipeline that decodes JPEGs and remembers the images that DALI cannot decode.

    Only one thread may call it.
    """

    def __init__(self, batch_size: int, num_threads: int, device_id: int | None) -> None:
        """Note the settings; the first batch builds the pipeline."""
        self._settings = batch_size, num_threads, device_id
        self._pipeline: Any = None
        self._refused: set[int] = set()

    def decode(self, rows: NDArray[np.int64], data: list[NDArray[np.uint8]]) -> tuple[NDArray[np.int64], Any]:
        """Decode JPEGs.

        Args:
            rows: int64 [K], rows of the pack, by which images that DALI refused are recognised.
            data: K encoded images, uint8 [bytes] each.

        Returns:
            int64 [J], indices into `rows` of the decoded images, and DALI's list of them, uint8 [H, W, 3].

        Raises:
            LoaderError: DALI stopped for a reason other than a bad image.
        """
        wanted = [i for i, row in enumerate(rows.tolist()) if row not in self._refused]
        if not wanted:
            return np.empty(0, np.int64), []
        try:
            return np.array(wanted), self._run([data[i] for i in wanted])
        except RuntimeError as error:
            known = len(self._refused)
            for i in wanted:
                try:
                    self._run([data[i]])
                except RuntimeError:
                    self._refused.add(int(rows[i]))
            if len(self._refused) == known:
                raise LoaderError(f"DALI stopped: {error}") from error
        return self.decode(rows, data)

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline = None

    def _run(self, data: list[NDArray[np.uint8]]) -> Any:
        try:
            if self._pipeline is None:
                self._pipeline = build_decoder(*self._settings)
                self._pipeline.build()
            self._pipeline.feed_input(IMAGES, data)
            return self._pipeline.run()[0]
        except BaseException:
            # A pipeline is invalid after an image that it cannot decode. After another error, its input may
            # be one batch ahead.
            self._pipeline = None
            raise


def _device_id(name: str) -> int | None:
    """Return the number of a GPU, or None for the CPU; `cuda` without a number is the current GPU."""
    device = torch.device(name)
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


class DaliRenderer(Rows):
    """The cpu backend's renderer over pixels that DALI has decoded.

    Our own decoder decodes the rows that DALI cannot. A row that neither can decode is replaced as in the cpu
    backend. DALI decodes some damaged images without a warning, so the bytes of a row are compared with their
    CRC-32 when the row is first read, or at every reading with the option `verify`.
    """

    may_hang: str = "DALI or the storage hangs; use backend='cpu'"

    def __init__(self, work: Work, streams: CudaStreams | None = None) -> None:
        """Prepare the decoder; the first batch builds its pipeline.

        Args:
            streams: streams of the `DeviceRenderer` that draws the views; None if pixels stay on the host.
        """
        super().__init__(work)
        self._streams = streams
        self._memory = None if streams is None else PinnedPool(streams)
        self._is_good = np.zeros(len(work.split.pack), np.bool_)
        self.device_id = _device_id(work.options.device)
        self._dali = DaliDecoder(work.batch_size, work.crew.num_threads, self.device_id)
        self._thread = WorkerPool(1, "sluice-dali")

    def close(self, timeout_s: float) -> None:
        """Stop the thread and free the pipeline; a thread that hangs is left behind after `timeout_s`."""
        self._thread.close(timeout_s)
        self._dali.close()

    def job(self, request: Request) -> Job:
        """Draw the random parameters of a batch's views, and let DALI begin to decode its rows."""
        job = super().job(request)
        job.reading = self._thread.submit(self._read_all, job)
        return job

    def locate_all(self, job: Job) -> EncodedRows:
        """Wait until DALI has decoded the rows of a job."""
        assert job.reading is not None
        limit_s = self.options.timeout_s
        return result_until(job.reading, time.monotonic() + limit_s, limit_s, job.said, self.may_hang)

    def place(self, job: Job) -> Place:
        """Return where a job's pixels lie on the device; copy those of our own decoder there."""
        rows = self.locate_all(job)
        address = rows.addresses.astype(np.int64)
        own = np.setdiff1d(np.arange(len(address)), rows.keep.places)
        copies = self._copied([self._decoded(job, rows, i) for i in own.tolist()])
        address[own] = [copy.data_ptr() for copy in copies]
        return Place(address, True, (rows.keep, copies), job.heights, job.widths)

    def _decoded(self, job: Job, rows: EncodedRows, i: int) -> Tensor:
        """Return row i of a job, or its replacement, decoded by our own decoder: uint8 [H, W, 3]."""
        planes, starts, regions = self.decode(job, rows.part(i, i + 1), i, self.worker())
        top, left, height, width = regions[0].tolist()
        part = planes[starts[0] :][: 3 * height * width].reshape(3, height, width)
        pixels = np.zeros((job.heights[i], job.widths[i], 3), np.uint8)
        pixels[top : top + height, left : left + width] = part.transpose(1, 2, 0)
        return torch.from_numpy(pixels)

    def _copied(self, images: list[Tensor]) -> list[Tensor]:
        """Queue one copy of all images from pinned memory to the device, and return the device tensors.

        The pinned memory returns to its pool when the copy is done; nothing waits for that.
        """
        if self._streams is None or self._memory is None or not images:
            return images
        block = Block(images)
        memory = self._memory.take(1 << (block.size_bytes - 1).bit_length())  # a power of two, for reuse
        for image, part in zip(images, block.parts(memory), strict=True):
            np.copyto(part.numpy(), image.numpy())  # in this thread; torch would use several
        copy = self._streams.copy(memory[: block.size_bytes])
        self._memory.give_back(self._streams.current().record_event(), memory)
        return block.parts(copy)

    def _read_all(self, job: Job) -> EncodedRows:
        """Locate the rows of a job, with pixels in DALI's memory for the rows that DALI can decode."""
        rows = self.locate(job, 0, len(job.rows))
        if job.cancelled:
            return rows
        self.verify(job, rows, 0)
        encoded = np.flatnonzero(rows.whole & (rows.encodings == ENCODING_JPEG))
        data = [self.work.split.pack.view(row) for row in job.rows[encoded].tolist()]
        decoded, outputs = self._dali.decode(job.rows[encoded], data)
        places = []
        for place, pixels in zip(encoded[decoded].tolist(), outputs, strict=True):
            if tuple(pixels.shape()) == (
                rows.heights[place],
                rows.widths[place],
                3,
            ):  # otherwise our decoder reports what is wrong
                rows.addresses[place], rows.encodings[place] = pixels.data_ptr(), ENCODING_RAW
                rows.sizes[place] = rows.pixel_bytes[place]
                places.append(place)
        return rows._replace(keep=Decoded(outputs, np.array(places, np.int64), rows.keep))

    def verify(self, job: Job, rows: EncodedRows, first: int) -> None:
        """Compare rows not yet found good, or all rows with the option `verify`, with their CRC-32."""
        if isinstance(rows.keep, Decoded):  # already compared
            return
        numbers = job.rows[first : first + len(rows.sizes)]
        new = np.flatnonzero(~self._is_good[numbers] | self.options.verify)
        some = rows.addresses[new], rows.sizes[new], rows.keep
        rows.whole[new] = crc32_all(*some) == self.work.split.pack.columns.crc32[numbers[new]]
        self._is_good[numbers] = rows.whole
