"""Plan on the host the launches that draw a batch of views, and launch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.common.errors import MissingBackendError
from loaders.kernels.views.codes import (
    AFFINE,
    AUTOCONTRAST,
    BLUR,
    CONTRAST,
    EQUALIZE,
    SHARPNESS,
    STANDARDIZE,
)

BLOCK = 512  # pixels per program
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_WHOLE = (AFFINE, AUTOCONTRAST, BLUR, CONTRAST, EQUALIZE, SHARPNESS, STANDARDIZE)
"""Operations that begin a launch, since they need the whole view."""


def import_kernels() -> Any:
    """Return the module of the kernels, `loaders.kernels.device.views`.

    Raises:
        MissingBackendError: Triton cannot be imported.
    """
    try:
        from loaders.kernels.device import views
    except ImportError as error:
        raise MissingBackendError(
            f"views on a device: triton cannot be imported ({error}); install it with 'pip install triton', "
            "or use backend='cpu'"
        ) from None
    return views


class Parameters(NamedTuple):
    """The parameters of a batch of views, as sent to the device: about 200 bytes per view.

    Attributes:
        address: int64 [B], where each image's pixels begin.
        place: int64 [B], where each view's rows begin in the buffer between the first two launches.
        box: float64 [B, 4]; window: int32 [B, 4]; shift: int32 [B, 2]; flip: int32 [B]; codes: int32 [B, P];
            args: float32 [B, P]: see `loaders.views.draw.ViewParameters`.
        sizes: int32 [B, 2], height and width of each image.
        rows: int32 [B, 2], first row that the view needs, and the number of rows.
        stages: int32 [S, B, 2], see `plan`.
    """

    address: Tensor
    place: Tensor
    box: Tensor
    window: Tensor
    shift: Tensor
    flip: Tensor
    codes: Tensor
    args: Tensor
    sizes: Tensor
    rows: Tensor
    stages: Tensor


def plan(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Cut each view's operations into launches.

    Args:
        codes: int32 [B, P], in the order of application.

    Returns:
        int32 [S, B, 2]: for `down` and each launch after it, the slot of the operation with which it begins,
        and the slot before which it stops. `down` begins with no operation (-1). A blur takes two launches;
        the first of them has the blur's slot in both places. A finished view has -1 in both places.
    """
    batch, slots = codes.shape
    number = np.arange(slots, dtype=np.int32)
    stops = np.full((batch, slots + 1), slots, np.int32)
    for k in range(slots - 1, -1, -1):
        stops[:, k] = np.where(np.isin(codes[:, k], _WHOLE), number[k], stops[:, k + 1])
    every = np.arange(batch)
    at = stops[:, 0]
    stages = [np.stack([np.full(batch, -1, np.int32), at], axis=1)]
    half = np.zeros(batch, np.bool_)  # the blur at `at` is half done
    while (at < slots).any():
        going = at < slots
        code = codes[every, np.minimum(at, slots - 1)]
        begins = going & (code == BLUR) & ~half
        after = np.where(begins, at, stops[every, np.minimum(at + 1, slots)])
        stages.append(np.where(going[:, None], np.stack([at, after], axis=1), -1).astype(np.int32))
        at, half = np.where(going, after, slots), begins
    return np.stack(stages)


def rows_needed(
    box: NDArray[np.float64], window: NDArray[np.int32], resolution: int, cubic: bool
) -> NDArray[np.int32]:
    """Return int32 [B, 2], the first row of the image that the filter can reach, and the number of rows."""
    support = (2.0 if cubic else 1.0) * np.maximum(box[:, 2] / resolution, 1.0)
    first = np.maximum(np.floor(box[:, 0] - support).astype(np.int64), window[:, 0])
    first = np.minimum(first, window[:, 2] - 1)
    last = np.minimum(np.ceil(box[:, 0] + box[:, 2] + support).astype(np.int64) + 1, window[:, 2])
    return np.stack([first, np.maximum(last - first, 1)], axis=1).astype(np.int32)


def parameters_of(
    address: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    drawn: Any,
    resolution: int,
    cubic: bool,
) -> Parameters:
    """Return, on the host, the parameters of a batch's launches.

    Args:
        address: int64 [B], where each image's pixels begin on the device.
        heights, widths: int64 [B], size of each image.
        drawn: `ViewParameters` of B views.
        cubic: bicubic instead of bilinear.
    """
    rows = rows_needed(drawn.box, drawn.window, resolution, cubic)
    sizes = rows[:, 1].astype(np.int64) * 3 * resolution
    slots = max(1, drawn.codes.shape[1])  # kernels may read the first slot of a view without operations
    codes, args = np.zeros((len(address), slots), np.int32), np.zeros((len(address), slots), np.float32)
    codes[:, : drawn.codes.shape[1]], args[:, : drawn.args.shape[1]] = drawn.codes, drawn.args
    arrays: tuple[NDArray[Any], ...] = (
        address, np.cumsum(sizes) - sizes, drawn.box, drawn.window, drawn.shift, drawn.flip.astype(np.int32),
        codes, args, np.stack([heights, widths], axis=1).astype(np.int32), rows, plan(codes),
    )  # fmt: skip
    return Parameters(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


class Extent(NamedTuple):
    """Sizes of a batch that the host knows, so that it need not read them from the device.

    Attributes:
        rows: largest number of rows that a view needs of its image.
        between: number of float32 values between the first two launches.
        equalizes: whether any view is equalised.
    """

    rows: int
    between: int
    equalizes: bool


def extent_of(parameters: Parameters, resolution: int) -> Extent:
    """Return the extent of parameters that are on the host."""
    rows = parameters.rows[:, 1]
    between = 3 * resolution * int(rows.sum())
    return Extent(int(rows.max()), between, bool((parameters.codes == EQUALIZE).any()))


class Layout(NamedTuple):
    """How images and views lie in memory, and the filter that resamples them.

    Attributes:
        resolution: R, side of a view in pixels.
        channels_last: views are [B, R, R, 3] instead of [B, 3, R, R].
        cubic: the filter is bicubic instead of bilinear.
        interleaved: images are [H, W, 3] instead of [3, H, W].
        rounded: resample as Pillow does, in whole bytes.
    """

    resolution: int
    channels_last: bool
    cubic: bool
    interleaved: bool
    rounded: bool


def draw_views(
    p: Parameters,
    extent: Extent,
    layout: Layout,
    gain: Tensor,
    bias: Tensor,
    out: Tensor,
    kernels: Any,
    allocate: Callable[..., Tensor] = torch.empty,
) -> int:
    """Queue the launches that draw a batch of views, without waiting for them.

    Args:
        p: parameters on the device.
        gain, bias: float32 [3], the normalisation: out = value * gain + bias.
        out: [B * 3 * R * R], the finished views: float32, float16, bfloat16 or uint8 (truncated).
        kernels: the module that `import_kernels` returns.
        allocate: makes the buffers between launches; takes the arguments of `torch.empty`.

    Returns:
        The number of kernels launched.
    """
    side, batch, slots = layout.resolution, len(p.address), p.codes.shape[1]
    size, device = side * side, out.device
    blocks = -(-size // BLOCK)
    between = allocate(extent.between, dtype=torch.float32, device=device)
    num_stages = len(p.stages)
    buffers = [
        (
            allocate(batch * 3 * size, dtype=torch.float32, device=device),
            allocate(batch * blocks * 6, dtype=torch.float32, device=device),
            allocate(batch * blocks * 768 if extent.equalizes else 1, dtype=torch.int32, device=device),
        )
        for _ in range(min(2, max(1, num_stages - 1)))
    ]
    steps = (3, 1) if layout.channels_last else (1, size)
    kernels.across[batch, -(-extent.rows * side // BLOCK)](
        p.address, p.sizes, p.box, p.window, p.shift, p.flip, p.rows, p.place, between, side,
        layout.interleaved, layout.cubic, layout.rounded, BLOCK, **_OPTIONS,
    )  # fmt: skip
    kernels.down[batch, blocks](
        between, p.place, p.rows, p.box, p.window, p.shift, p.codes, p.args, slots, p.stages[0], *buffers[0],
        out, gain, bias, side, *steps, layout.cubic, layout.rounded, extent.equalizes,
        BLOCK, **_OPTIONS,
    )  # fmt: skip
    for number in range(1, num_stages):
        before, after = buffers[(number - 1) % 2], buffers[number % len(buffers)]
        kernels.advance[batch, blocks](
            *before, p.codes, p.args, slots, p.stages[number], *after, out, gain, bias, side, *steps,
            extent.equalizes, BLOCK, **_OPTIONS,
        )  # fmt: skip
    return 1 + num_stages
