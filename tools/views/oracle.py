"""Views rendered by torchvision and Pillow from parameters that we drew, to compare our kernels with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from loaders.kernels.random import philox
from loaders.kernels.views import codes
from loaders.views.draw import ViewParameters
from loaders.views.geometry import PaddedCrop
from loaders.views.policy import ViewPolicy


def torchvision_view(image: NDArray[np.uint8], policy: ViewPolicy, drawn: ViewParameters, i: int) -> Tensor:
    """Render a view with torchvision's functions.

    Args:
        image: uint8 [H, W, 3], decoded.
        i: number of the image in the batch.

    Returns:
        float32 [3, R, R] in [0, 1], before normalisation. The box is rounded to whole pixels, because
        torchvision crops at whole pixels. If `policy.rounded`, Pillow resizes and crops instead.
    """
    box = drawn.box[i]
    x = _by_pillow(image, policy, box) if policy.rounded else _by_torchvision(image, policy, box)
    if drawn.flip[i]:
        x = functional.horizontal_flip(x)
    if isinstance(policy.geometry, PaddedCrop):
        x = _shift(x, drawn.shift[i], policy.geometry.padding)
    for slot, code in enumerate(drawn.codes[i].tolist()):
        if code != codes.NONE:
            x = _apply(code, x, drawn.args[i, slot:])
    return x.clamp(0, 1)


def _by_torchvision(image: NDArray[np.uint8], policy: ViewPolicy, box: NDArray[np.float64]) -> Tensor:
    top, left, height, width = (max(0, round(float(value))) for value in box)
    mode = InterpolationMode.BICUBIC if policy.interpolation == "bicubic" else InterpolationMode.BILINEAR
    x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    size = [policy.resolution, policy.resolution]
    x = functional.resized_crop(
        x, top, left, max(1, height), max(1, width), size, interpolation=mode, antialias=True
    )
    return _tensor(x.clamp(0, 1))


def _by_pillow(image: NDArray[np.uint8], policy: ViewPolicy, box: NDArray[np.float64]) -> Tensor:
    """Resize the whole image, first in width and then in height, and crop the view from it.

    Pillow could resize a box directly, but its boxes are float32.
    """
    mode = Resampling.BICUBIC if policy.interpolation == "bicubic" else Resampling.BILINEAR
    side = policy.resolution
    height, width = (round(image.shape[axis] * side / box[2 + axis]) for axis in (0, 1))
    top, left = (round(box[axis] * side / box[2 + axis]) for axis in (0, 1))
    resized = Image.fromarray(image).resize((width, image.shape[0]), mode).resize((width, height), mode)
    cut = resized.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


def _shift(x: Tensor, shift: NDArray[np.int32], padding: float) -> Tensor:
    side = x.shape[-1]
    reach = round(padding * side)
    if reach == 0:
        return x
    padded = functional.pad(x, [reach] * 4, padding_mode="reflect")
    return _tensor(functional.crop(padded, reach + int(shift[0]), reach + int(shift[1]), side, side))


def _apply(code: int, x: Tensor, args: NDArray[np.float32]) -> Tensor:
    """Apply one operation to float [3, R, R] in [0, 1]; `args` begins with the operation's first argument."""
    value = float(args[0])
    match code:
        case codes.BRIGHTNESS:
            return _tensor(functional.adjust_brightness(x, value))
        case codes.CONTRAST:
            return _tensor(functional.adjust_contrast(x, value))
        case codes.SATURATION:
            return _tensor(functional.adjust_saturation(x, value))
        case codes.HUE:
            return _tensor(functional.adjust_hue(x, value))
        case codes.GRAYSCALE:
            return _tensor(functional.rgb_to_grayscale(x, 3))
        case codes.BLUR:
            taps = 2 * min(int(np.ceil(3 * value)) + 2, x.shape[-1] - 1) + 1
            return _tensor(functional.gaussian_blur(x, [taps, taps], [value, value]))
        case codes.SOLARIZE:
            return _tensor(functional.solarize(x, value / 255))
        case codes.INVERT:
            return _tensor(functional.invert(x))
        case codes.AUTOCONTRAST:
            return _tensor(functional.autocontrast(x))
        case codes.SHARPNESS:
            return _tensor(functional.adjust_sharpness(x, value))
        case codes.POSTERIZE:
            return _tensor(functional.posterize(_bytes(x), int(value))).float() / 255
        case codes.EQUALIZE:
            return _tensor(functional.equalize(_bytes(x))).float() / 255
        case codes.AFFINE:
            return _warp(x, args)
        case codes.NOISE:
            return _erase(x, args, _noise(args, x.shape[-1]))
        case codes.CUTOUT:
            return _erase(x, args, torch.from_numpy(args[4:7].copy()).view(3, 1, 1) / 255)
    raise ValueError(f"oracle: no operation has code {code}")


def _erase(x: Tensor, args: NDArray[np.float32], value: Tensor) -> Tensor:
    top, left, bottom, right = (int(edge) for edge in args[:4])
    return _tensor(functional.erase(x, top, left, bottom - top, right - left, value))


def _noise(args: NDArray[np.float32], side: int) -> Tensor:
    """Return the noise that `NOISE` writes into its box: float32 [3, h, w], each value random in [0, 1]."""
    top, left, bottom, right, *keys = (int(value) for value in args[:6])
    places = (np.arange(top, bottom)[:, None] * side + np.arange(left, right)).ravel()
    words = [philox(*map(np.uint64, (int(place), 0, 0, 0, *keys)))[:3] for place in places]
    values = np.array(words, np.float64).reshape(bottom - top, right - left, 3) / 2**32
    return torch.from_numpy(values).permute(2, 0, 1).float()


def _tensor(x: Any) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def _warp(x: Tensor, args: NDArray[np.float32]) -> Tensor:
    """Warp as torchvision's `affine` does internally: sample a grid at the nearest pixels."""
    a, b, c, d, e, f, fill = (float(value) for value in args[:7])
    half = x.shape[-1] / 2
    matrix = torch.tensor([[[a, b, c / half], [d, e, f / half]]])
    seen = torch.cat([x, torch.ones_like(x[:1])])[None]
    grid = affine_grid(matrix, list(seen.shape), align_corners=False)
    warped = grid_sample(seen, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0]
    return torch.where(warped[3:] > 0.5, warped[:3], torch.tensor(fill / 255))
