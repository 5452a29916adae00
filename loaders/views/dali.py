"""DALI pipelines: one that decodes for the dali backend, and one of DALI's own operators for other programs.

`build_pipeline` turns policies into a graph that decodes each image once and has a branch for each view. The
dali backend does not use this graph, since our kernels draw its views. Nothing in the graph is random: drawn
numbers come from `draw()` through inputs, so crops, flips and factors are those of the cpu backend. The
pixels differ a little, since DALI keeps uint8 between operations, and repeats the last pixel where a resize
filter reaches over the border of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.options import missing_backend
from loaders.views.dali_operations import Branch, Feed, missing, operate
from loaders.views.draw import ViewParameters, num_slots
from loaders.views.geometry import CenterCrop, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from loaders.views.policy import HorizontalFlip, Normalize, Standardize, ViewPolicy

IMAGES = "images"  # name of the input of images, encoded or as pixels

_ON_GPU: dict[str, Any] = {
    "hw_decoder_load": 0.9,  # share of a batch for the hardware decoder, if there is one
    "preallocate_width_hint": 2048,  # pixels, so that no buffer grows in the first epoch
    "preallocate_height_hint": 2048,
}

DaliDType = Literal["float32", "float16", "uint8"]


def import_dali() -> Any:
    """Return the package `nvidia.dali`.

    Raises:
        MissingBackendError: DALI cannot be imported.
    """
    try:
        import nvidia.dali as dali
    except ImportError as error:
        raise missing_backend("nvidia.dali", error) from None
    return dali


def refusal(view: ViewPolicy) -> str | None:
    """Return the name of a part of a policy that DALI cannot express; None if DALI can express all of it."""
    if not isinstance(view.geometry, RandomResizedCrop | CenterCrop | ResizedCenterCrop | PaddedCrop):
        return type(view.geometry).__name__
    if isinstance(view.geometry, PaddedCrop) and _reach(view) >= view.resolution:
        return "PaddedCrop by the whole view"
    if view.rounded:
        return "ResizedCenterCrop in Pillow's bytes (use rounded=False)"
    if isinstance(view.normalize, Standardize):
        return "Standardize"
    for operation in view.operations:
        if not isinstance(operation, HorizontalFlip) and missing(operation):
            return missing(operation)
    return None


def check_views(views: tuple[ViewPolicy, ...]) -> None:
    """Refuse views that DALI cannot express.

    Raises:
        UserError: the error names the view and what DALI lacks.
    """
    for view in views:
        what = refusal(view)
        if what is not None:
            raise UserError(
                f"view {view.name!r}: expected operations that DALI has, found {what}; use backend='dali', "
                "whose views are drawn by our kernels"
            )


def build_decoder(batch_size: int, num_threads: int, device_id: int | None) -> Any:
    """Describe a pipeline that decodes JPEGs and does nothing else.

    Args:
        batch_size: images of the largest batch.
        num_threads: CPU threads of DALI. They limit decoding on a GPU too, where the host reads the Huffman
            codes of images under a megapixel.
        device_id: GPU that decodes; None for the CPU.

    Returns:
        The pipeline, which takes JPEG bytes at its input `IMAGES` and returns images uint8 [H, W, 3].

    Raises:
        MissingBackendError: DALI cannot be imported.
    """
    dali = import_dali()
    from nvidia.dali import fn, types

    def graph() -> Any:
        return _images(fn, types, False, device_id is not None)

    return dali.pipeline_def(graph)(
        batch_size=batch_size, num_threads=num_threads, device_id=device_id, prefetch_queue_depth=1
    )


def build_pipeline(
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    num_threads: int,
    *,
    device_id: int | None,
    dtype: DaliDType,
    channels_last: bool,
    decoded: bool = False,
) -> tuple[Any, list[Feed]]:
    """Describe the views as a pipeline of DALI's operators, for programs that run on DALI; nothing runs yet.

    To run a batch, call `feed_batch` and then `pipeline.run()`.

    Args:
        batch_size: images of the largest batch.
        num_threads: CPU threads of DALI.
        device_id: GPU that decodes and augments; None for the CPU alone.
        dtype: dtype of the views; uint8 ones are not normalised.
        channels_last: deliver [R, R, 3] instead of [3, R, R] per image.
        decoded: the images come as pixels [H, W, 3] instead of JPEG bytes.

    Returns:
        The pipeline, whose input `IMAGES` takes the images and whose output v is view v; and its other
        inputs.

    Raises:
        UserError: the error names the view and what DALI lacks.
        MissingBackendError: DALI cannot be imported.
    """
    check_views(views)
    dali = import_dali()
    from nvidia.dali import fn, math, types

    on_gpu = device_id is not None
    feeds: list[Feed] = []
    slots = [_first_slots(view) for view in views]

    def graph() -> tuple[Any, ...]:
        image = _images(fn, types, decoded, on_gpu)
        feeds.clear()
        outputs = []
        for number, view in enumerate(views):
            branch = Branch(view, number, on_gpu, feeds, fn, types, math)
            outputs.append(_view(branch, image, slots[number], dtype, channels_last))
        return tuple(outputs)

    # With a deeper queue, run() needs its first batches all at once; schedule_run() queues them singly.
    pipeline = dali.pipeline_def(graph, enable_conditionals=True)(
        batch_size=batch_size, num_threads=num_threads, device_id=device_id, prefetch_queue_depth=1
    )
    return pipeline, feeds


def feed_batch(
    pipeline: Any,
    feeds: Sequence[Feed],
    images: Sequence[NDArray[np.uint8]],
    parameters: Sequence[ViewParameters],
) -> None:
    """Give a pipeline of `build_pipeline` its next batch.

    Args:
        pipeline: the pipeline, already built.
        feeds: its other inputs.
        images: B arrays of uint8, JPEG bytes or pixels [H, W, 3]; they must live until the batch is finished.
        parameters: what `loaders.views.draw.draw` drew, one per view, for the same B images.
    """
    pipeline.feed_input(IMAGES, list(images))
    for feed in feeds:
        pipeline.feed_input(feed.name, feed.read(parameters[feed.view]))


def _images(fn: Any, types: Any, decoded: bool, on_gpu: bool) -> Any:
    """Return the decoded images."""
    # `no_copy`: DALI reads the caller's memory, which the caller keeps until the batch is finished.
    if decoded:
        pixels = fn.external_source(name=IMAGES, dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
        return pixels.gpu() if on_gpu else pixels
    encoded = fn.external_source(name=IMAGES, dtype=types.UINT8, ndim=1, no_copy=True)
    # The index holds the sizes of the stored pixels, so images must not be turned by their EXIF orientation.
    # Without fancy upsampling, colours decoded on a GPU differ from those of libjpeg-turbo.
    on_device = {"device": "mixed", **_ON_GPU} if on_gpu else {"device": "cpu"}
    return fn.decoders.image(
        encoded, output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True, **on_device
    )


# ---------------------------------------------------------------- geometry


def _reach(view: ViewPolicy) -> int:
    assert isinstance(view.geometry, PaddedCrop)
    return round(view.geometry.padding * view.resolution)


def _corner(p: ViewParameters, end: bool) -> NDArray[np.float32]:
    """Return the first or last corners of the source boxes; swapped columns make DALI mirror a view."""
    corner = p.box[:, :2] + (p.box[:, 2:] if end else 0.0)
    other = p.box[:, :2] + (0.0 if end else p.box[:, 2:])
    corner[p.flip, 1] = other[p.flip, 1]
    return corner.astype(np.float32)


def _geometry(branch: Branch, image: Any) -> Any:
    """Crop, resize with antialiasing and flip in one operator, then shift a padded crop."""
    fn, types, view = branch.fn, branch.types, branch.policy
    pair = np.zeros(2, np.float32)
    cubic = view.interpolation == "bicubic"
    pixels = fn.resize(
        image,
        size=[view.resolution, view.resolution],
        roi_start=branch.feed("start", lambda p: _corner(p, False), pair),
        roi_end=branch.feed("end", lambda p: _corner(p, True), pair),
        antialias=True,
        interp_type=types.INTERP_CUBIC if cubic else types.INTERP_LINEAR,
    )
    if isinstance(view.geometry, PaddedCrop) and _reach(view) > 0:
        pixels = _shift(branch, pixels, _reach(view))
    return pixels


def _shift(branch: Branch, pixels: Any, reach: int) -> Any:
    """Pad by reflection and crop back at the drawn shift."""
    fn, side = branch.fn, branch.policy.resolution
    for axis in (0, 1):
        first = [1, 0] if axis == 0 else [0, 1]
        last = [side - 1 - reach, 0] if axis == 0 else [0, side - 1 - reach]
        shape = [reach, side] if axis == 0 else [side + 2 * reach, reach]
        turn = {"vertical": 1, "horizontal": 0} if axis == 0 else {"vertical": 0, "horizontal": 1}
        before = fn.flip(fn.slice(pixels, first, shape, axes=[0, 1]), **turn)
        after = fn.flip(fn.slice(pixels, last, shape, axes=[0, 1]), **turn)
        pixels = fn.cat(before, pixels, after, axis=axis)
    anchor = branch.feed("shift", lambda p: (p.shift + reach).astype(np.int32), np.zeros(2, np.int32))
    return fn.slice(pixels, anchor, [side, side], axes=[0, 1])


# ---------------------------------------------------------------- a whole view


def _first_slots(view: ViewPolicy) -> list[int]:
    """Return the slot in `codes` at which each operation begins."""
    return [0, *accumulate(num_slots(operation) for operation in view.operations)][:-1]


def _view(branch: Branch, image: Any, slots: list[int], dtype: DaliDType, channels_last: bool) -> Any:
    """Apply the geometry, the operations and the normalisation of a view."""
    fn, types, view = branch.fn, branch.types, branch.policy
    pixels = _geometry(branch, image)
    for place, operation in enumerate(view.operations):
        if not isinstance(operation, HorizontalFlip):  # the resize does the flip
            pixels = operate(branch, slots[place], operation, pixels)
    mean, std = [0.0], [1.0]
    if dtype != "uint8":
        std = [255.0]
        if isinstance(view.normalize, Normalize):
            mean = [255 * value for value in view.normalize.mean]
            std = [255 * value for value in view.normalize.std]
    return fn.crop_mirror_normalize(
        pixels,
        mean=mean,
        std=std,
        dtype={"uint8": types.UINT8, "float16": types.FLOAT16, "float32": types.FLOAT}[dtype],
        output_layout="HWC" if channels_last else "CHW",
    )
