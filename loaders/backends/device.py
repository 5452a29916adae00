"""Draws views on a device with Triton kernels, for backends whose pixels lie there.

The host draws the random parameters of a batch and plans the launches. The parameters go to the device as
one block, and the kernels run on a separate stream, ahead of the consumer's. No thread waits for the device:
memory that kernels read is kept until the event recorded after them has passed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends.cpu import CpuRenderer, Job, normalization, shaped
from loaders.backends.threads import WorkerPool
from loaders.backends.work import Backend, Pending, Renderer, Request, Work
from loaders.batch import Batch
from loaders.common.errors import MissingBackendError, UserError
from loaders.kernels.device.launch import (
    Layout,
    Parameters,
    draw_views,
    extent_of,
    import_kernels,
    parameters_of,
)
from loaders.placing import Block, CudaStreams, Lent, PinnedPool
from loaders.views.policy import (
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    QuarterTurn,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
)

# What loaders.kernels.device draws. The kernels would silently skip any other operation, so it is refused.
_OPERATIONS = (
    *(HorizontalFlip, ColorJitter, Grayscale, GaussianBlur, Solarize, RandomAffine, RandAugment, Cutout),
    *(RandomErasing, QuarterTurn),
)
_AUGMENTS = (
    *("autocontrast", "brightness", "color", "contrast", "equalize", "identity", "invert", "posterize"),
    *("rotate", "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y"),
)


class DeviceBackend(Backend):
    """Base of backends that draw views on the GPU to which batches are delivered."""

    def refusal(self, work: Work) -> UserError | None:
        """Return the error for a pack in a store, or for a device or views without kernels; see `Backend`."""
        return super().refusal(work) or refuse_device(self.name, work)

    def identity(self, work: Work) -> dict[str, str]:
        """Name the device kernels as the renderer, unless the device is the CPU; see `Backend`."""
        kind = torch.device(work.options.device).type
        return super().identity(work) | ({} if kind == "cpu" else {"renderer": f"device kernels on {kind}"})


def refuse_device(name: str, work: Work) -> UserError | None:
    """Return the error if our kernels cannot draw views on the device; None if they can, or on a CPU."""
    kind = torch.device(work.options.device).type
    if kind == "cpu":
        return None
    if kind != "cuda":
        return UserError(
            f"backend {name}: expected device 'cpu' or 'cuda', found {work.options.device!r}; use "
            "backend='cpu'"
        )
    operations = [one for view in work.views for one in view.operations]
    if lacking := next(filter(None, map(_lacking, operations)), None):
        return UserError(
            f"backend {name}: expected operations that the device has, found {lacking}; use backend='cpu'"
        )
    try:
        import_kernels()
        for view in work.views:
            normalization(view, np.dtype("uint8" if work.options.dtype == "uint8" else "float32"))
    except (MissingBackendError, UserError) as error:
        return error
    return None


def _lacking(operation: Operation) -> str | None:
    """Return the name of an operation, or part of one, that the device lacks; None if it lacks nothing."""
    if not isinstance(operation, _OPERATIONS):
        return type(operation).__name__
    if isinstance(operation, RandomErasing) and operation.fill == "noise":
        return 'RandomErasing with noise (use fill="mean")'
    names = [one.name for one in operation.augments] if isinstance(operation, RandAugment) else []
    return next((f"{name} of RandAugment" for name in names if name not in _AUGMENTS), None)


class Place(NamedTuple):
    """Where the pixels of a batch lie on the device.

    Attributes:
        address: int64 [B], where the pixels of each image begin.
        interleaved: whether pixels lie as [H, W, 3] instead of [3, H, W].
        keep: keeps the pixels alive until the kernels are done.
        heights: int64 [B], rows of each plane.
        widths: int64 [B], pixels from one row to the next.
    """

    address: NDArray[np.int64]
    interleaved: bool
    keep: Any
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]


class Rows(CpuRenderer):
    """Base of the sources of pixels: a renderer on the host whose decoded pixels can lie on the device."""

    @abstractmethod
    def place(self, job: Job) -> Place:
        """Return where the pixels of a job lie. Damaged rows are replaced, and their parameters redrawn."""


class _Drawn(NamedTuple):
    """A batch whose launches are queued."""

    job: Job
    views: list[Tensor]
    event: torch.cuda.Event


class DeviceRenderer(Renderer):
    """Draws the batches of one stream of images on a device."""

    def __init__(self, rows: Rows, streams: CudaStreams | None = None) -> None:
        """Open a CUDA stream; the kernels are compiled with the first batch.

        Args:
            streams: streams of the device; by default those of the options' CUDA device.
        """
        super().__init__(rows.work.options)
        self._rows, self._work = rows, rows.work
        self.bad_rows = rows.bad_rows
        self.may_hang = rows.may_hang
        self._device = torch.device(rows.work.options.device)
        self._streams = streams or CudaStreams(self._device)
        self._stream = self._streams.stream()
        self._pool = PinnedPool(self._streams)
        self._lent = Lent()
        self._kernels = import_kernels()
        kind = np.dtype("uint8" if self.options.dtype == "uint8" else "float32")
        with self._streams.use(self._stream):
            self._gains = [
                [torch.from_numpy(part).to(self._device) for part in normalization(view, kind)]
                for view in self._work.views
            ]
        self._thread = WorkerPool(1, "sluice-device")
        self.num_launches = 0

    def submit(self, request: Request) -> Pending:
        """Begin a batch; its result is ready once its launches are queued."""
        job = self._rows.job(request)
        drawing = self._thread.submit(self._draw, job)

        def cancel() -> None:
            if drawing.cancel():  # only where the drawing has not begun
                self._rows.drop(job)

        what = "a batch on its way to the device"
        return Pending([drawing], what, self.may_hang, lambda: self.collect(drawing.result()), cancel)

    def collect(self, drawn: _Drawn) -> Batch:
        """Make the current stream wait for a batch, and return the batch."""
        stream = self._streams.current()
        stream.wait_event(drawn.event)
        for view in drawn.views:
            self._streams.record(view, stream)
        return self._rows.batch(drawn.job, drawn.views)

    def close(self, timeout_s: float) -> None:
        """Stop the thread; a thread that hangs is left behind after `timeout_s`."""
        self._thread.close(timeout_s)

    def _draw(self, job: Job) -> _Drawn:
        with self._streams.use(self._stream):
            place = self._rows.place(job)
            views = self._queue(job, place)
            event = self._stream.record_event()
        self._lent.keep(event, place)
        return _Drawn(job, views, event)

    def _queue(self, job: Job, place: Place) -> list[Tensor]:
        """Copy the parameters of all views as one block, and queue the launches of each view."""
        policies = self._work.views
        numbers = [
            parameters_of(
                place.address,
                place.heights,
                place.widths,
                drawn,
                view.resolution,
                view.interpolation == "bicubic",
            )
            for view, drawn in zip(policies, job.parameters, strict=True)
        ]
        block = Block([tensor for one in numbers for tensor in one])
        memory = self._pool.take(block.size_bytes)
        block.write(memory)
        parts = block.parts(self._streams.copy(memory[: block.size_bytes]))
        self._pool.give_back(self._stream.record_event(), memory)
        views = []
        width = len(Parameters._fields)
        for number, view in enumerate(policies):
            side = view.resolution
            out = torch.empty(
                len(job.rows) * 3 * side * side, dtype=self._rows.torch_dtype, device=self._device
            )
            last = self.options.channels_last
            cubic = view.interpolation == "bicubic"
            layout = Layout(side, last, cubic, place.interleaved, view.rounded)
            p = Parameters(*parts[number * width : (number + 1) * width])
            extent = extent_of(numbers[number], side)
            gain, bias = self._gains[number]
            self.num_launches += draw_views(p, extent, layout, gain, bias, out, self._kernels)
            views.append(shaped(out, side, last))
        return views
