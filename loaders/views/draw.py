"""Draws the random parameters of a batch of views from a policy, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.views import codes, drawing
from loaders.views.geometry import CenterCrop, PaddedCrop, RandomResizedCrop, ResizedCenterCrop, Tile
from loaders.views.policy import (
    IMAGENET,
    AlternatingFlip,
    AugmentName,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    Operation,
    QuarterTurn,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
    Standardize,
    ViewPolicy,
)

AUGMENT_CODES: dict[AugmentName, int] = {
    "autocontrast": codes.AUTOCONTRAST,
    "brightness": codes.BRIGHTNESS,
    "color": codes.SATURATION,
    "contrast": codes.CONTRAST,
    "equalize": codes.EQUALIZE,
    "identity": codes.NONE,
    "invert": codes.INVERT,
    "posterize": codes.POSTERIZE,
    "rotate": drawing.ROTATE,
    "sharpness": codes.SHARPNESS,
    "shear_x": drawing.SHEAR_X,
    "shear_y": drawing.SHEAR_Y,
    "solarize": codes.SOLARIZE,
    "translate_x": drawing.TRANSLATE_X,
    "translate_y": drawing.TRANSLATE_Y,
}
_GEOMETRY = 0  # number of the geometry in the random numbers; operations are numbered from 1


@dataclass(frozen=True)
class ViewParameters:
    """Everything random about one view of B images.

    Attributes:
        box: float64 [B, 4], top, left, height, width of the source box in pixels.
        window: int32 [B, 4], top, left, bottom, right of the pixels that resize taps may read.
        shift: int32 [B, 2], rows and columns by which the resized view is shifted; borders reflect.
        flip: bool [B], whether to mirror left to right.
        codes: int32 [B, P] for P slots, operation codes in the order of application; 0 does nothing.
        args: float32 [B, P], arguments of the operations.
    """

    box: NDArray[np.float64]
    window: NDArray[np.int32]
    shift: NDArray[np.int32]
    flip: NDArray[np.bool_]
    codes: NDArray[np.int32]
    args: NDArray[np.float32]


def num_slots(operation: Operation) -> int:
    """Return the number of entries of an operation in `codes` and `args`."""
    match operation:
        case HorizontalFlip():
            return 0
        case ColorJitter():
            return 4
        case RandomAffine() | QuarterTurn():
            return codes.ARGUMENTS[codes.AFFINE]
        case Cutout():
            return codes.ARGUMENTS[codes.CUTOUT]
        case RandomErasing(fill=fill):
            return codes.ARGUMENTS[codes.NOISE if fill == "noise" else codes.CUTOUT]
        case RandAugment():
            return operation.num_ops * codes.MAX_ARGUMENTS
        case _:
            return 1


def draw(
    policy: ViewPolicy,
    seed: int,
    epochs: NDArray[np.int64],
    rows: NDArray[np.int64],
    view: int,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> ViewParameters:
    """Draw the parameters of one view of the images at `rows`.

    Args:
        seed: any int64.
        epochs: int64 [B], in [0, 2^32); one per row, since a batch may hold rows of two epochs.
        rows: int64 [B], rows of the pack; in [0, 2^48).
        view: number of the view in the counter of the random numbers, in [0, 2^16); see `Work.first_view`.
        heights, widths: int64 [B], pixels of each image.

    Returns:
        The parameters. They depend only on the arguments, and those of a row on no other row.
    """
    batch = len(rows)
    standardize = isinstance(policy.normalize, Standardize)
    slots = sum(num_slots(operation) for operation in policy.operations) + standardize
    parameters = ViewParameters(
        box=np.empty((batch, 4), np.float64),
        window=np.empty((batch, 4), np.int32),
        shift=np.zeros((batch, 2), np.int32),
        flip=np.zeros(batch, np.bool_),
        codes=np.zeros((batch, slots), np.int32),
        args=np.zeros((batch, slots), np.float32),
    )
    at = (np.int64(seed), epochs, rows, np.int64(view - policy.shares_draws_of))
    _draw_geometry(policy, at, heights, widths, parameters)
    slot = 0
    for number, operation in enumerate(policy.operations, start=_GEOMETRY + 1):
        _draw_operation(operation, policy, at, number, slot, parameters)
        slot += num_slots(operation)
    if isinstance(policy.normalize, Standardize):
        parameters.codes[:, slot], parameters.args[:, slot] = codes.STANDARDIZE, 255 * policy.normalize.eps
    return parameters


_At = tuple[np.int64, NDArray[np.int64], NDArray[np.int64], np.int64]


def _draw_geometry(
    policy: ViewPolicy, at: _At, heights: NDArray[np.int64], widths: NDArray[np.int64], out: ViewParameters
) -> None:
    match policy.geometry:
        case RandomResizedCrop() as crop:
            _draw_resized_crop(crop, at, heights, widths, out)
        case Tile(row=row, column=column, grid=grid, cell=cell, crop=crop):
            _draw_resized_crop(crop, at, heights, widths, out)
            drawing.draw_tile(*at, row, column, grid, cell, policy.resolution, out.box)
        case CenterCrop(fraction=fraction):
            drawing.draw_centered(*at, heights, widths, float(fraction), 0, out.box, out.window, out.shift)
        case ResizedCenterCrop(short_side=short_side):
            _centre_resized(short_side, policy.resolution, heights, widths, out)
        case PaddedCrop(padding=padding):
            reach = round(padding * policy.resolution)
            drawing.draw_centered(*at, heights, widths, 1.0, reach, out.box, out.window, out.shift)


def _centre_resized(
    short_side: int, side: int, heights: NDArray[np.int64], widths: NDArray[np.int64], out: ViewParameters
) -> None:
    """Write the boxes of torchvision's Resize and CenterCrop, which rounds half pixels to even."""
    short = np.minimum(heights, widths)
    out.window[:, :2] = 0
    for axis, lengths in enumerate((heights, widths)):
        resized = short_side * lengths // short
        scale = lengths / resized
        out.box[:, axis] = np.rint((resized - side) / 2) * scale
        out.box[:, 2 + axis] = side * scale
        out.window[:, 2 + axis] = lengths


def _draw_resized_crop(
    crop: RandomResizedCrop,
    at: _At,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    out: ViewParameters,
) -> None:
    scale = (float(crop.scale[0]), float(crop.scale[1]))
    log_ratio = (float(np.log(crop.ratio[0])), float(np.log(crop.ratio[1])))
    drawing.draw_resized_crop(*at, heights, widths, scale, log_ratio, out.box, out.window)


def _draw_operation(
    operation: Operation, policy: ViewPolicy, at: _At, number: int, slot: int, out: ViewParameters
) -> None:
    resolution, into = policy.resolution, (slot, out.codes, out.args)
    match operation:
        case AlternatingFlip(p=p):  # drawn as in epoch 0, and inverted in odd epochs
            seed, epochs, rows, view = at
            drawing.draw_flip(seed, np.zeros_like(epochs), rows, view, number, float(p), out.flip)
            np.logical_xor(out.flip, epochs % 2 == 1, out=out.flip)
        case HorizontalFlip(p=p):
            drawing.draw_flip(*at, number, float(p), out.flip)
        case ColorJitter(p=p):
            strengths = (operation.brightness, operation.contrast, operation.saturation)
            low = np.array([max(0.0, 1 - s) for s in strengths] + [-operation.hue])
            high = np.array([1.0 + s for s in strengths] + [operation.hue])
            drawing.draw_jitter(*at, number, float(p), low, high, *into)
        case Grayscale(p=p):
            drawing.draw_one(*at, number, float(p), codes.GRAYSCALE, 0.0, 0.0, *into)
        case GaussianBlur(p=p, sigma=sigma):
            drawing.draw_one(*at, number, float(p), codes.BLUR, float(sigma[0]), float(sigma[1]), *into)
        case Solarize(p=p, threshold=threshold):
            level = float(threshold)
            drawing.draw_one(*at, number, float(p), codes.SOLARIZE, level, level, *into)
        case RandomAffine(p=p, degrees=degrees, translate=translate, fill=fill):
            warp = (float(degrees), float(translate), resolution, float(fill))
            drawing.draw_affine(*at, number, float(p), *warp, *into)
        case RandAugment(p=p, num_ops=num_ops, levels=levels, fill=fill):
            kinds = np.array([AUGMENT_CODES[augment.name] for augment in operation.augments])
            ranges = np.array(
                [(augment.low, augment.high, augment.signed) for augment in operation.augments], float
            )
            first, count = levels or (0, 0)
            grid = (first, count, resolution, float(fill))
            drawing.draw_randaugment(*at, number, float(p), num_ops, kinds, ranges, *grid, *into)
        case QuarterTurn(turns=turns):
            cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[turns]
            if turns > 0:  # the matrix maps the warped view back to its source
                out.codes[:, slot], stop = codes.AFFINE, slot + codes.ARGUMENTS[codes.AFFINE]
                out.args[:, slot:stop] = (cos, -sin, 0.0, sin, cos, 0.0, 0.0)
        case Cutout(p=p, size=size, fill=fill):
            square = (float(size[0]), float(size[1]), resolution, float(fill))
            drawing.draw_cutout(*at, number, float(p), *square, *into)
        case RandomErasing(p=p, scale=scale, ratio=ratio, fill=mode):
            shape = (float(scale[0]), float(scale[1])), (float(np.log(ratio[0])), float(np.log(ratio[1])))
            known = policy.normalize if isinstance(policy.normalize, Normalize) else IMAGENET
            colour = (mode == "noise", 255 * np.clip(known.mean, 0.0, 1.0))
            drawing.draw_erasing(*at, number, float(p), *shape, resolution, *colour, *into)
        case _:
            assert_never(operation)
