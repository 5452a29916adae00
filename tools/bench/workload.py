"""The work that the loader benchmark gives to every contender: views, their size, and batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

ViewSet = Literal["barlow", "fixmatch", "crop_flip", "crop_flip_pair", "rotations", "tiles"]
ImageEncoding = Literal["jpeg", "raw"]
Interpolation = Literal["bicubic", "bilinear"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CropFlip:
    """A random resized crop with antialiasing, then a horizontal flip; used by itself: uint8 pixels."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


@dataclass(frozen=True)
class BarlowView(CropFlip):
    """One of Barlow Twins' two views; normalised float32.

    Source: Zbontar et al., "Barlow Twins" (2021), section 2.2 and appendix A.
    """

    blur: float = 1.0
    solarize: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    sigma: tuple[float, float] = (0.1, 2.0)
    threshold: int = 128


@dataclass(frozen=True)
class FixMatchView:
    """A weak or strong view of FixMatch; normalised float32. Images must have the view's resolution.

    Weak: horizontal flip, then a random crop of the image padded by reflection. Strong: after the weak
    view, `num_ops` operations of RandAugment, each at a random magnitude, then Cutout.

    Source: Sohn et al., "FixMatch" (2020), section 2.3 and appendix D.
    """

    strong: bool
    flip: float = 0.5
    padding: float = 0.125
    num_ops: int = 2
    num_magnitudes: int = 10
    cutout: float = 0.5
    cutout_fill: int = 127


@dataclass(frozen=True)
class TurnedView(CropFlip):
    """One of RotNet's four views of one crop and flip, rotated by `turns` quarter turns; normalised float32.

    Source: Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations" (2018).
    """

    turns: int = 0


@dataclass(frozen=True)
class TileView(CropFlip):
    """One of nine tiles cut from the same resized crop, each at a random place in its cell of a 3 x 3 grid.

    The workload's resolution is the side of a cell; a tile's side is `share` of it. Tiles are float32, and
    each channel of a tile has mean 0 and standard deviation 1.

    Source: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles"
    (2016), section 4.
    """

    flip: float = 0.0
    number: int = 0
    grid: int = 3
    share: float = 64 / 75
    eps: float = 1e-3


View = CropFlip | BarlowView | FixMatchView | TurnedView | TileView


@dataclass(frozen=True)
class Workload:
    """The work that is measured.

    Attributes:
        resolution: side of a view in pixels; for tiles, the side of a cell.
        threads: threads or worker processes of a contender, and the number of cores to which it is bound.
        interpolation: filter of the resized crop, antialiased if the contender can do that.
        encoding: how the images are stored: "jpeg", or "raw" (as pixels), which some contenders cannot read.
    """

    views: ViewSet
    resolution: int
    batch_size: int = 64
    threads: int = 2
    interpolation: Interpolation = "bicubic"
    seed: int = 0
    encoding: ImageEncoding = "jpeg"

    @property
    def side(self) -> int:
        """Return the side of the delivered views in pixels; tiles are smaller than their cells."""
        return round(self.resolution * TileView().share) if self.views == "tiles" else self.resolution

    @property
    def view_list(self) -> tuple[View, ...]:
        """Return the definition of each view of an image."""
        match self.views:
            case "barlow":
                return BarlowView(blur=1.0, solarize=0.0), BarlowView(blur=0.1, solarize=0.2)
            case "fixmatch":
                return FixMatchView(strong=False), FixMatchView(strong=True)
            case "crop_flip":
                return (CropFlip(),)
            case "crop_flip_pair":
                return CropFlip(), CropFlip()
            case "rotations":
                return tuple(TurnedView(turns=turns) for turns in range(4))
            case "tiles":
                return tuple(TileView(number=number) for number in range(9))

    @property
    def is_uint8(self) -> bool:
        """Return whether views are uint8 pixels rather than normalised floats."""
        return self.views in ("crop_flip", "crop_flip_pair")

    @property
    def blur_size(self) -> int:
        """Return the side of the blur kernel: about a tenth of the view, odd, as SimCLR defines it."""
        return max(3, self.resolution // 10 // 2 * 2 + 1)

    def as_record(self) -> dict[str, object]:
        """Return the fields for a JSON record."""
        return asdict(self)
