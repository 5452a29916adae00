"""Augmentation as data: what a view is, without saying how it is computed.

A `ViewPolicy` is a geometry (which box of the image becomes the view) followed by operations on the
resized pixels. Every class here is frozen and holds only settings, such as probabilities and ranges, from
which `draw.py` draws the numbers that our kernels or DALI's operators apply.

Example:
    crop, operations = RandomResizedCrop(scale=(0.2, 1.0)), (HorizontalFlip(0.5), Grayscale(0.2))
    ViewPolicy("mine", 96, crop, operations, IMAGENET)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from loaders.common.checks import is_number
from loaders.common.errors import UserError
from loaders.views.geometry import (
    MAX_RESOLUTION,
    Geometry,
    require,
    require_number,
    require_range,
    require_whole,
)

# Exported again, so that a policy needs names of this module only.
from loaders.views.geometry import CenterCrop as CenterCrop
from loaders.views.geometry import PaddedCrop as PaddedCrop
from loaders.views.geometry import RandomResizedCrop as RandomResizedCrop
from loaders.views.geometry import ResizedCenterCrop as ResizedCenterCrop
from loaders.views.geometry import Tile as Tile

Interpolation = Literal["bilinear", "bicubic"]
ErasingFill = Literal["noise", "mean"]
Augmentation = Literal["rotation", "translation", "jitter", "randaugment"]
"""What `presets.augmented` can add to a view."""

MAX_FACTOR = 255.0  # largest factor of brightness and the like: a pixel value of 1 then becomes 255


def _is_tuple_of(values: object, kinds: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, kinds) for value in values)


def _require_probability(p: object, what: str) -> None:
    require_number(f"{what} probability", p, 0.0, 1.0)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left to right with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _require_probability(self.p, "HorizontalFlip")


@dataclass(frozen=True)
class AlternatingFlip(HorizontalFlip):
    """Mirror a share `p` of the images in even epochs, the others in odd epochs: two epochs show both sides.

    If rows are drawn by weights, the draws of a row alternate between the sides within an epoch, and the side
    of its first draw changes from epoch to epoch.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), section 3.6.
    """


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter.

    Attributes:
        brightness: the factor is drawn in [max(0, 1 - brightness), 1 + brightness]; those of contrast and
            saturation likewise.
        contrast: strength of the blend with the mean of the gray image.
        saturation: strength of the blend with the gray image.
        hue: turn of the hue circle, drawn in [-hue, hue]; at most 0.5.
        p: probability that the jitter is applied at all.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require_number(f"ColorJitter {name}", getattr(self, name), 0.0, MAX_FACTOR - 1)
        require_number("ColorJitter hue", self.hue, 0.0, 0.5)
        _require_probability(self.p, "ColorJitter")


@dataclass(frozen=True)
class Grayscale:
    """Replace the colours by their luma (0.2989, 0.587, 0.114) with probability `p`."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _require_probability(self.p, "Grayscale")


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur; the standard deviation is drawn uniformly in `sigma`, pixels; borders reflect."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _require_probability(self.p, "GaussianBlur")
        require_range("GaussianBlur sigma", self.sigma, 1e-3, 20.0)


@dataclass(frozen=True)
class Solarize:
    """With probability `p`, invert all values that reach `threshold`, a number in [0, 256]."""

    p: float = 0.2
    threshold: float = 128.0

    def __post_init__(self) -> None:
        _require_probability(self.p, "Solarize")
        require_number("Solarize threshold", self.threshold, 0.0, 256.0)


@dataclass(frozen=True)
class RandomAffine:
    """One affine warp about the centre, nearest neighbour: rotation and translation, each drawn uniformly.

    Attributes:
        degrees: the angle is drawn in [-degrees, degrees].
        translate: shift as a share of the view's side, drawn in [-translate, translate] per axis.
        fill: value in [0, 255] of pixels from outside the source.
        p: probability that the view is warped.
    """

    degrees: float = 0.0
    translate: float = 0.0
    fill: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        require_number("RandomAffine degrees", self.degrees, 0.0, 180.0)
        require_number("RandomAffine translate", self.translate, 0.0, 1.0)
        require_number("RandomAffine fill", self.fill, 0.0, 255.0)
        _require_probability(self.p, "RandomAffine")


AugmentName = Literal[
    "autocontrast", "brightness", "color", "contrast", "equalize", "identity", "invert", "posterize",
    "rotate", "sharpness", "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
]  # fmt: skip

_MAGNITUDES: dict[str, tuple[float, float]] = {
    "brightness": (0.0, MAX_FACTOR),
    "color": (0.0, MAX_FACTOR),
    "contrast": (0.0, MAX_FACTOR),
    "posterize": (0.0, 8.0),
    "rotate": (-360.0, 360.0),
    "sharpness": (0.0, MAX_FACTOR),
    "shear_x": (-10.0, 10.0),
    "shear_y": (-10.0, 10.0),
    "solarize": (0.0, 256.0),
    "translate_x": (-1.0, 1.0),
    "translate_y": (-1.0, 1.0),
}
"""Allowed arguments of RandAugment's operations; operations not listed here take no argument."""


@dataclass(frozen=True)
class Augment:
    """One operation of RandAugment and what its magnitude in [0, 1] means.

    Attributes:
        name: name of the operation.
        low: argument at magnitude 0: a factor for brightness, color, contrast, sharpness; bits for posterize;
            a threshold in [0, 256] for solarize; degrees for rotate; a slope for shear; a share of the side
            for translate.
        high: argument at magnitude 1; may be less than `low`.
        signed: whether the argument is negated with probability 1/2.
    """

    name: AugmentName
    low: float = 0.0
    high: float = 0.0
    signed: bool = False

    def __post_init__(self) -> None:
        known = self.name in get_args(AugmentName)
        require(known, "RandAugment operation", f"one of {', '.join(get_args(AugmentName))}", self.name)
        least, most = _MAGNITUDES.get(self.name, (0.0, 0.0))
        for end in ("low", "high"):
            require_number(f"RandAugment {self.name} {end}", getattr(self, end), least, most)
        fits = self.signed is False or (self.signed is True and least < 0)
        require(fits, f"RandAugment {self.name} signed", "False, or True for a warp", self.signed)


@dataclass(frozen=True)
class RandAugment:
    """A few operations drawn with replacement, each at a random magnitude (Cubuk et al. 2020; FixMatch).

    Attributes:
        augments: operations to draw from.
        num_ops: operations per view.
        p: probability that a drawn operation is applied.
        levels: magnitudes are k / levels[1] with k drawn in levels[0] .. levels[1] - 1; None draws them
            uniformly in [0, 1).
        fill: value in [0, 255] of pixels that a geometric operation takes from outside the view.
    """

    augments: tuple[Augment, ...]
    num_ops: int = 2
    p: float = 0.5
    levels: tuple[int, int] | None = None
    fill: float = 0.0

    def __post_init__(self) -> None:
        some = _is_tuple_of(self.augments, Augment) and len(self.augments) > 0
        require(some, "RandAugment augments", "a tuple of at least one Augment", self.augments)
        require_whole("RandAugment num_ops", self.num_ops, 1, 100)
        _require_probability(self.p, "RandAugment")
        ok = self.levels is None or (
            isinstance(self.levels, tuple)
            and len(self.levels) == 2
            and all(isinstance(level, int) for level in self.levels)
            and is_number(self.levels[1], 1, 10**6)
            and is_number(self.levels[0], 0, self.levels[1] - 1)
        )
        require(ok, "RandAugment levels", "None or (first, number) with 0 <= first < number", self.levels)
        require_number("RandAugment fill", self.fill, 0.0, 255.0)


@dataclass(frozen=True)
class Cutout:
    """Fill a square at a random centre (DeVries and Taylor 2017); parts outside the view are cut off.

    Attributes:
        size: range of the square's side as a share of the view's.
        fill: value in [0, 255].
        p: probability that a square is filled.
    """

    size: tuple[float, float] = (0.5, 0.5)
    fill: float = 127.0
    p: float = 1.0

    def __post_init__(self) -> None:
        require_range("Cutout size", self.size, 0.0, 1.0)
        require_number("Cutout fill", self.fill, 0.0, 255.0)
        _require_probability(self.p, "Cutout")


@dataclass(frozen=True)
class RandomErasing:
    """Fill a rectangle of random area and aspect ratio (Zhong et al. 2017, algorithm 1).

    Attributes:
        p: probability of erasing; a view stays unchanged if none of ten drawn rectangles fits into it.
        scale: range of the rectangle's share of the view's area.
        ratio: range of height / width, drawn uniformly in its logarithm, as torchvision draws it.
        fill: "noise" draws every value of every pixel uniformly in [0, 255] (RE-R of the paper). "mean" takes
            the mean of the view's `Normalize`, which becomes 0 in the normalised view, or ImageNet's mean if
            the view has no `Normalize` (RE-M).
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: ErasingFill = "noise"

    def __post_init__(self) -> None:
        _require_probability(self.p, "RandomErasing")
        require_range("RandomErasing scale", self.scale, 0.0, 1.0)
        require_range("RandomErasing ratio", self.ratio, 1e-3, 1e3)
        require(self.fill in get_args(ErasingFill), "RandomErasing fill", "'noise' or 'mean'", self.fill)


@dataclass(frozen=True)
class QuarterTurn:
    """Turn the view counter-clockwise by `turns` quarters, exactly, as `torch.rot90` does."""

    turns: int

    def __post_init__(self) -> None:
        require_whole("QuarterTurn turns", self.turns, 0, 3)


Operation = (
    HorizontalFlip
    | ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarize
    | RandomAffine
    | RandAugment
    | Cutout
    | RandomErasing
    | QuarterTurn
)


@dataclass(frozen=True)
class Normalize:
    """(value / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, least in (("mean", -1e3), ("std", 1e-6)):
            found = getattr(self, name)
            three = isinstance(found, tuple) and len(found) == 3
            fits = three and all(is_number(value, least, 1e3) for value in found)
            require(fits, f"Normalize {name}", f"three numbers in [{least:g}, 1000]", found)


IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Standardize:
    """Normalise each channel to (value - mean) / (std + eps), with mean and std of the view itself.

    `eps` belongs to values in [0, 1]. For float views only. Without this, brightness and contrast would
    reveal which tiles are neighbours (Noroozi, Favaro 2016, section 4.2).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        require_number("Standardize eps", self.eps, 1e-9, 1.0)


_SIDED = {"rotate", "shear_x", "shear_y", "translate_x"}  # operations that a mirrored view shows reversed


def _differs_mirrored(operation: Operation) -> bool:
    """Tell whether a flip before an operation gives another view than a flip after it."""
    match operation:
        case QuarterTurn(turns=turns):
            return turns % 2 == 1
        case RandAugment(augments=augments):
            return any(augment.name in _SIDED for augment in augments)
        case _:
            return isinstance(operation, RandomAffine)


def _check_flips(where: str, operations: tuple[Operation, ...]) -> None:
    """Refuse a flip after an operation with which it does not commute, since the resize does flips first."""
    before = None
    for operation in operations:
        if before is not None and isinstance(operation, HorizontalFlip):
            raise UserError(
                f"operations {where}: expected flips before turns and warps, found "
                f"{type(operation).__name__} after {type(before).__name__}; put the flip first"
            )
        before = operation if _differs_mirrored(operation) else before


@dataclass(frozen=True)
class ViewPolicy:
    """One view: box, resize to a square, operations in their order, normalisation.

    Attributes:
        name: shown in reports and errors.
        resolution: side of the view in pixels.
        geometry: which box of the image becomes the view.
        operations: applied in this order to the resized pixels. The resize does the flips, so they come
            first. A flip after an operation with which it does not commute, such as a warp, is refused.
            Cutout and RandomErasing may follow or precede a flip: their places are random either way.
        normalize: None delivers values in [0, 1] for float views; uint8 views are never normalised.
        interpolation: filter of the antialiased resize.
        shares_draws_of: k shares the random numbers of the view k places before this one in the loader; 0
            shares none. Both views then draw the same numbers for the geometry, and for operations with
            the same place in both policies.
    """

    name: str
    resolution: int
    geometry: Geometry
    operations: tuple[Operation, ...] = ()
    normalize: Normalize | Standardize | None = None
    interpolation: Interpolation = "bilinear"
    shares_draws_of: int = 0

    def __post_init__(self) -> None:
        where = f"of view {self.name}"
        require_whole(f"resolution {where}", self.resolution, 1, MAX_RESOLUTION)
        require(isinstance(self.geometry, Geometry), f"geometry {where}", "one of policy.py", self.geometry)
        known = self.interpolation in ("bilinear", "bicubic")
        require(known, f"interpolation {where}", "'bilinear' or 'bicubic'", self.interpolation)
        require_whole(f"shares_draws_of {where}", self.shares_draws_of, 0, MAX_RESOLUTION)
        if isinstance(self.geometry, Tile):
            require_whole(f"tile {where}", self.resolution, 1, self.geometry.cell)
        if isinstance(self.geometry, ResizedCenterCrop):
            require_whole(f"resolution {where}", self.resolution, 1, self.geometry.short_side)
        fits = _is_tuple_of(self.operations, Operation)
        require(fits, f"operations {where}", "a tuple of operations of policy.py", self.operations)
        _check_flips(where, self.operations)
        normalizes = isinstance(self.normalize, Normalize | Standardize | None)
        require(normalizes, f"normalize {where}", "Normalize, Standardize or None", self.normalize)

    @property
    def rounded(self) -> bool:
        """Whether the resize rounds its results to bytes, as Pillow does."""
        return isinstance(self.geometry, ResizedCenterCrop) and self.geometry.rounded
