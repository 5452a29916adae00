"""Pixel operations of a view as DALI operators, each applied only to the images for which it was drawn.

All work on uint8 [R, R, 3]. Conditions in the graph split a batch, so that an image costs only its own
operations. The definitions are torchvision's and PIL's. Some of DALI's operators have the same name but
another definition (hue rotates a plane of YIQ, contrast blends with a constant, equalize follows OpenCV);
these definitions are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.views import codes
from loaders.kernels.views.drawing import ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y
from loaders.views.draw import AUGMENT_CODES, ViewParameters
from loaders.views.policy import (
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    Operation,
    RandAugment,
    RandomAffine,
    Solarize,
    ViewPolicy,
)

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
_WARPS = (ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y)  # drawn as matrices, which code AFFINE applies
_ONE, _TWO, _THREE, _FOUR, _SIX = (np.float32(value) for value in (1, 2, 3, 4, 6))


@dataclass(frozen=True)
class Feed:
    """An input of the graph, and the function that makes its batch.

    Attributes:
        name: name of the input.
        view: number of the view whose parameters it takes.
        read: function from the parameters of a batch to an array [B, ...], one entry per image.
    """

    name: str
    view: int
    read: Callable[[ViewParameters], NDArray[Any]]


@dataclass
class Branch:
    """One view's part of a graph under construction.

    Attributes:
        policy: the view.
        number: number of the view in the graph.
        on_gpu: whether the pixels lie on a GPU.
        feeds: the inputs added so far.
        fn: the module `nvidia.dali.fn`.
        types: the module `nvidia.dali.types`.
        math: the module `nvidia.dali.math`.
    """

    policy: ViewPolicy
    number: int
    on_gpu: bool
    feeds: list[Feed]
    fn: Any
    types: Any
    math: Any

    def feed(self, what: str, read: Callable[[ViewParameters], NDArray[Any]], like: NDArray[Any]) -> Any:
        """Add an input to the graph; `like` has the dtype and number of dimensions of one image's entry."""
        name = f"view{self.number}_{what}"
        self.feeds.append(Feed(name, self.number, read))
        kind = {"f": "FLOAT", "b": "BOOL", "i": "INT32", "u": "UINT8"}[like.dtype.kind]
        return self.fn.external_source(name=name, dtype=getattr(self.types, kind), ndim=like.ndim)

    def operand(self, node: Any) -> Any:
        """Return a node's value on the device where the pixels are computed."""
        return node.gpu() if self.on_gpu else node

    def constant(self, value: NDArray[Any]) -> Any:
        """Return the same array for every image."""
        node = self.types.Constant(value, device="cpu")
        return self.operand(node)


def operate(branch: Branch, slot: int, operation: Operation, pixels: Any) -> Any:
    """Apply an operation to the images for which it was drawn; its codes begin at `slot`."""
    for at, kinds in _slots(operation, slot):
        for code in kinds:
            pixels = _apply_where_drawn(branch, at, code, operation, pixels)
    return pixels


def missing(operation: Operation) -> str | None:
    """Return the name of an operation, or part of one, that DALI lacks; None if it lacks nothing."""
    if isinstance(operation, RandAugment):
        kinds = {AUGMENT_CODES[augment.name]: augment.name for augment in operation.augments}
        if codes.EQUALIZE in kinds:
            return "equalize (DALI's follows OpenCV instead of PIL)"
        return next((kinds[code] for code in kinds if code not in (codes.NONE, *_WARPS, *_APPLY)), None)
    if not isinstance(operation, ColorJitter) and type(operation) not in _CODES:
        return type(operation).__name__
    return None


_CODES: dict[type, int] = {
    Grayscale: codes.GRAYSCALE,
    GaussianBlur: codes.BLUR,
    Solarize: codes.SOLARIZE,
    RandomAffine: codes.AFFINE,
    Cutout: codes.CUTOUT,
}


def _slots(operation: Operation, slot: int) -> list[tuple[int, list[int]]]:
    """Return the slots that may hold codes of an operation, and the codes."""
    if isinstance(operation, ColorJitter):
        strengths = (operation.brightness, operation.contrast, operation.saturation, operation.hue)
        kinds = [codes.BRIGHTNESS + i for i, strength in enumerate(strengths) if strength > 0]
        return [(slot + k, kinds) for k in range(4)]
    if isinstance(operation, RandAugment):
        drawn = sorted({AUGMENT_CODES[augment.name] for augment in operation.augments} - {codes.NONE})
        kinds = sorted({codes.AFFINE if code in _WARPS else code for code in drawn})
        return [(slot + n * codes.MAX_ARGUMENTS, kinds) for n in range(operation.num_ops)]
    return [(slot, [_CODES[type(operation)]])]


def _apply_where_drawn(branch: Branch, slot: int, code: int, operation: Operation, pixels: Any) -> Any:
    """Apply an operation to the images whose `slot` holds `code`; other images pass unchanged at no cost."""
    drawn = branch.feed(f"{slot}_{code}", lambda p: p.codes[:, slot] == code, np.zeros((), np.bool_))
    apply = _APPLY[code]
    if drawn:  # DALI turns this condition into a split of the batch
        pixels = apply(branch, slot, operation, pixels)
    return pixels


def _argument(branch: Branch, what: str, slot: int) -> Any:
    return branch.feed(f"{slot}_{what}", lambda p: p.args[:, slot].copy(), np.zeros((), np.float32))


def _to_bytes(branch: Branch, values: Any) -> Any:
    return branch.fn.cast(values, dtype=branch.types.UINT8)


def _brightness(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    return branch.fn.brightness(pixels, brightness=_argument(branch, "brightness", slot))


def _contrast(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    fn, factor = branch.fn, _argument(branch, "contrast", slot)
    luma = fn.reductions.sum(fn.reductions.mean(pixels, axes=[0, 1]) * branch.constant(_LUMA))
    if branch.on_gpu:  # operators take arguments on the CPU only, but this mean is on the GPU
        factor = branch.operand(factor)
        return _to_bytes(branch, pixels * factor + luma * (_ONE - factor))
    return fn.brightness_contrast(pixels, contrast=factor, contrast_center=luma)


def _gray(branch: Branch, pixels: Any) -> Any:
    fn, types = branch.fn, branch.types
    gray = fn.color_space_conversion(pixels, image_type=types.RGB, output_type=types.GRAY)
    return fn.color_space_conversion(gray, image_type=types.GRAY, output_type=types.RGB)


def _saturation(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    factor = branch.operand(_argument(branch, "saturation", slot))
    return _to_bytes(branch, pixels * factor + _gray(branch, pixels) * (_ONE - factor))


def _grayscale(branch: Branch, _slot: int, _: Operation, pixels: Any) -> Any:
    return _gray(branch, pixels)


def _hue(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    """Rotate the hue of HSV; hue in sextants, chroma and smallest channel then give the new colour."""
    fn, math = branch.fn, branch.math
    planes = fn.transpose(fn.cast(pixels, dtype=branch.types.FLOAT), perm=[2, 0, 1])
    red, green, blue = planes[0], planes[1], planes[2]
    high = math.max(math.max(red, green), blue)
    low = math.min(math.min(red, green), blue)
    chroma = high - low
    is_red = high == red
    is_green = (high == green) & (high != red)
    is_blue = (high != red) & (high != green)
    offset = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    turn = branch.operand(_argument(branch, "hue", slot)) * _SIX
    hue = offset / math.max(chroma, np.float32(1e-6)) + is_green * _TWO + is_blue * _FOUR + turn
    hue = hue - math.floor(hue * np.float32(1 / 6)) * _SIX
    shares = (
        math.abs(hue - _THREE) - _ONE,
        _TWO - math.abs(hue - _TWO),
        _TWO - math.abs(hue - _FOUR),
    )
    channels = [low + chroma * math.clamp(share, np.float32(0), _ONE) for share in shares]
    return fn.transpose(_to_bytes(branch, fn.stack(*channels, axis=0)), perm=[1, 2, 0], output_layout="HWC")


def _blur(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    """Apply a Gaussian blur with as many taps as in the cpu backend."""
    reach = branch.policy.resolution - 1

    def window(p: ViewParameters) -> NDArray[np.int32]:
        return 2 * np.minimum(np.ceil(3 * p.args[:, slot]), reach).astype(np.int32) + 1

    size = branch.feed(f"{slot}_window", window, np.zeros((), np.int32))
    return branch.fn.gaussian_blur(pixels, sigma=_argument(branch, "sigma", slot), window_size=size)


def _solarize(branch: Branch, slot: int, operation: Operation, pixels: Any) -> Any:
    types = branch.types
    if isinstance(operation, Solarize):
        table = np.arange(256)
        table = np.where(table >= operation.threshold, 255 - table, table)
        keys = list(range(256))
        return branch.fn.lookup_table(pixels, keys=keys, values=table.tolist(), dtype=types.UINT8)
    bright = pixels >= branch.operand(_argument(branch, "threshold", slot))
    return pixels ^ (_to_bytes(branch, bright) * types.Constant(255, types.UINT8))


def _invert(branch: Branch, _slot: int, _: Operation, pixels: Any) -> Any:
    return pixels ^ branch.types.Constant(255, branch.types.UINT8)


def _posterize(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    def mask(p: ViewParameters) -> NDArray[np.uint8]:
        dropped = 8 - np.clip(p.args[:, slot], 0, 8).astype(np.int32)
        return ((255 >> dropped) << dropped).astype(np.uint8)

    return pixels & branch.operand(branch.feed(f"{slot}_mask", mask, np.zeros((), np.uint8)))


def _autocontrast(branch: Branch, _slot: int, _: Operation, pixels: Any) -> Any:
    """Stretch each channel to [0, 255]; a constant channel is unchanged."""
    fn, types = branch.fn, branch.types
    low = fn.cast(fn.reductions.min(pixels, axes=[0, 1]), dtype=types.FLOAT)
    span = fn.cast(fn.reductions.max(pixels, axes=[0, 1]), dtype=types.FLOAT) - low
    varies = span > np.float32(0)
    scale = varies * np.float32(255) / branch.math.max(span, _ONE) + (span == np.float32(0))
    return _to_bytes(branch, (pixels - low * varies) * scale)


def _sharpness(branch: Branch, slot: int, _: Operation, pixels: Any) -> Any:
    """Blend with the smoothed view by one 3 x 3 filter; the outermost pixels are unchanged."""
    side = branch.policy.resolution

    def kernel(p: ViewParameters) -> NDArray[np.float32]:
        factor = p.args[:, slot].astype(np.float32)
        smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
        kernels = (1 - factor)[:, None, None] * smooth
        kernels[:, 1, 1] += factor
        return kernels.astype(np.float32)

    weights = branch.feed(f"{slot}_kernel", kernel, np.zeros((3, 3), np.float32))
    filtered = branch.fn.filter(pixels, branch.operand(weights))
    inside = np.zeros((side, side, 3), np.uint8)
    inside[1:-1, 1:-1] = 1
    return filtered * branch.constant(inside) + pixels * branch.constant(1 - inside)


def _affine(branch: Branch, slot: int, operation: Operation, pixels: Any) -> Any:
    """Warp about the centre; DALI's coordinates begin at the corner, half a pixel before the first centre."""
    assert isinstance(operation, RandomAffine | RandAugment)
    half = branch.policy.resolution / 2

    def matrix(p: ViewParameters) -> NDArray[np.float32]:
        found = p.args[:, slot : slot + 6].reshape(-1, 2, 3).astype(np.float64)
        found[:, :, 2] += half - half * (found[:, :, 0] + found[:, :, 1])
        return found.astype(np.float32)

    return branch.fn.warp_affine(
        pixels,
        matrix=branch.feed(f"{slot}_matrix", matrix, np.zeros((2, 3), np.float32)),
        interp_type=branch.types.INTERP_NN,
        fill_value=operation.fill,
        inverse_map=True,
    )


def _cutout(branch: Branch, slot: int, operation: Operation, pixels: Any) -> Any:
    assert isinstance(operation, Cutout)
    pair = np.zeros(2, np.float32)
    anchor = branch.feed(f"{slot}_anchor", lambda p: p.args[:, slot : slot + 2].copy(), pair)
    extent = branch.feed(
        f"{slot}_extent", lambda p: p.args[:, slot + 2 : slot + 4] - p.args[:, slot : slot + 2], pair
    )
    return branch.fn.erase(pixels, anchor=anchor, shape=extent, axis_names="HW", fill_value=operation.fill)


_APPLY: dict[int, Callable[[Branch, int, Operation, Any], Any]] = {
    codes.BRIGHTNESS: _brightness,
    codes.CONTRAST: _contrast,
    codes.SATURATION: _saturation,
    codes.HUE: _hue,
    codes.GRAYSCALE: _grayscale,
    codes.BLUR: _blur,
    codes.SOLARIZE: _solarize,
    codes.POSTERIZE: _posterize,
    codes.INVERT: _invert,
    codes.AUTOCONTRAST: _autocontrast,
    codes.SHARPNESS: _sharpness,
    codes.AFFINE: _affine,
    codes.CUTOUT: _cutout,
}
