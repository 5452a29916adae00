"""The papers' views, as policies."""

from __future__ import annotations

from dataclasses import replace

from loaders.views.geometry import CenterCrop, PaddedCrop, RandomResizedCrop, Tile
from loaders.views.policy import (
    IMAGENET,
    AlternatingFlip,
    Augment,
    Augmentation,
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
    Solarize,
    Standardize,
    ViewPolicy,
)


def _barlow(
    name: str,
    resolution: int,
    blur_p: float,
    solarize_p: float,
    min_scale: float,
    flip_p: float,
    max_sigma: float,
    normalize: Normalize | None,
) -> ViewPolicy:
    return ViewPolicy(
        name=name,
        resolution=resolution,
        geometry=RandomResizedCrop(scale=(min_scale, 1.0)),
        operations=(
            HorizontalFlip(p=flip_p),
            ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            Grayscale(p=0.2),
            GaussianBlur(p=blur_p, sigma=(min(0.1, max_sigma), max_sigma)),
            Solarize(p=solarize_p, threshold=128.0),
        ),
        normalize=normalize,
        interpolation="bicubic",
    )


def barlow_a(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    max_sigma: float = 2.0,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """First view of Barlow Twins: always blurred, never solarised.

    Args:
        min_scale: smallest share of the image area a crop may have; 0.08 in the paper.
        flip_p: probability of a horizontal flip; 0.5 in the paper, 0 where left and right carry meaning.
        max_sigma: largest standard deviation of the blur in pixels; 2 in the authors' code, at 224 pixels.
        normalize: None delivers values in [0, 1].

    Source: Zbontar et al. 2021, appendix A and the authors' code (class Transform).
    """
    return _barlow("barlow_a", resolution, 1.0, 0.0, min_scale, flip_p, max_sigma, normalize)


def barlow_b(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    max_sigma: float = 2.0,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """Second view of Barlow Twins: blurred with probability 0.1, solarised with 0.2; see `barlow_a`."""
    return _barlow("barlow_b", resolution, 0.1, 0.2, min_scale, flip_p, max_sigma, normalize)


def flipped_in_turns(view: ViewPolicy) -> ViewPolicy:
    """Return the view with each random flip replaced by an `AlternatingFlip`, which alternates by epoch."""
    operations = tuple(
        AlternatingFlip(operation.p)
        if isinstance(operation, HorizontalFlip) and 0.0 < operation.p < 1.0
        else operation
        for operation in view.operations
    )
    return replace(view, operations=operations)


def crop_flip(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """Random resized crop and flip: the supervised ImageNet view (He et al. 2015; Szegedy et al. 2015)."""
    geometry = RandomResizedCrop(scale=(min_scale, 1.0))
    return ViewPolicy("crop_flip", resolution, geometry, (HorizontalFlip(flip_p),), normalize)


def weak(
    resolution: int = 32,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
    padding: float = 0.125,
) -> ViewPolicy:
    """Weak view of FixMatch: flip, crop after padding by 12.5 % (Sohn et al. 2020, section 2.3).

    With `padding` 0 only the flip remains.
    """
    return ViewPolicy("weak", resolution, PaddedCrop(padding), (HorizontalFlip(flip_p),), normalize)


def _fixmatch_augments(strength: float) -> tuple[Augment, ...]:
    """Return FixMatch's 14 operations; strength 1 gives the paper's ranges, and less gives smaller ones."""
    enhance_low, enhance_high = 1 - 0.95 * strength, 0.95
    return (
        Augment("autocontrast"),
        Augment("brightness", enhance_low, enhance_high),
        Augment("color", enhance_low, enhance_high),
        Augment("contrast", enhance_low, enhance_high),
        Augment("equalize"),
        Augment("identity"),
        Augment("posterize", 8 - 4 * strength, 8),
        Augment("rotate", 0, 30 * strength, signed=True),
        Augment("sharpness", enhance_low, enhance_high),
        Augment("shear_x", 0, 0.3 * strength, signed=True),
        Augment("shear_y", 0, 0.3 * strength, signed=True),
        Augment("solarize", 256, 256 * (1 - strength)),
        Augment("translate_x", 0, 0.3 * strength, signed=True),
        Augment("translate_y", 0, 0.3 * strength, signed=True),
    )


def fixmatch_strong(
    resolution: int = 32, flip_p: float = 0.5, normalize: Normalize | None = IMAGENET, cutout: bool = True
) -> ViewPolicy:
    """Strong view of FixMatch: the weak view, RandAugment (n = 2, random magnitude), Cutout of half the side.

    Source: Sohn et al. 2020, appendix D; ranges, magnitudes (0.1, 0.2, ..., 0.9) and the probability 0.5 per
    operation as in the PyTorch code that reproduces its CIFAR figures.
    """
    operations = (
        HorizontalFlip(flip_p),
        RandAugment(_fixmatch_augments(1.0), num_ops=2, p=0.5, levels=(1, 10)),
        *((Cutout(size=(0.5, 0.5), fill=127.0),) if cutout else ()),
    )
    return ViewPolicy("fixmatch_strong", resolution, PaddedCrop(0.125), operations, normalize)


def fixmatch_strong_gentle(
    resolution: int = 32, flip_p: float = 0.5, normalize: Normalize | None = IMAGENET, cutout: bool = True
) -> ViewPolicy:
    """Gentler strong view for small or fine-grained images: ranges about half as wide, Cutout smaller."""
    operations = (
        HorizontalFlip(flip_p),
        RandAugment(_fixmatch_augments(0.5), num_ops=2, p=0.5, levels=(1, 10)),
        *((Cutout(size=(0.0, 0.25), fill=127.0),) if cutout else ()),
    )
    return ViewPolicy("fixmatch_strong_gentle", resolution, PaddedCrop(0.125), operations, normalize)


def simclr(
    resolution: int = 224, strength: float = 1.0, normalize: Normalize | None = IMAGENET
) -> ViewPolicy:
    """View of SimCLR: crop, flip, jitter of the given strength, gray, blur up to sigma 2.

    Source: Chen et al. 2020, appendix A. The views of BYOL (Grill et al. 2020) are those of Barlow Twins,
    `barlow_a` and `barlow_b`.
    """
    s = 0.8 * strength
    operations = (
        HorizontalFlip(0.5),
        ColorJitter(brightness=s, contrast=s, saturation=s, hue=0.2 * strength, p=0.8),
        Grayscale(0.2),
        GaussianBlur(p=0.5, sigma=(0.1, 2.0)),
    )
    return ViewPolicy("simclr", resolution, RandomResizedCrop(), operations, normalize, "bicubic")


def rotate_translate_jitter(resolution: int = 224, normalize: Normalize | None = IMAGENET) -> ViewPolicy:
    """Rotation, translation and colour jitter: the set of the INF473V report (section 2.2).

    The report gives no ranges; those of `augmented` are this project's choice.
    """
    plain = ViewPolicy("plain", resolution, CenterCrop(1.0), (HorizontalFlip(0.5),), normalize)
    return replace(augmented(plain, ("rotation", "translation", "jitter")), name="rotate_translate_jitter")


def augmented(view: ViewPolicy, augmentations: tuple[Augmentation, ...]) -> ViewPolicy:
    """Return a view with some of the INF473V report's augmentations after its own operations (section 2.2).

    The report gives no ranges. This project applies, in this order: rotations of up to 15 degrees and shifts
    of up to a tenth of the side, in one warp; jitter of brightness, contrast and saturation by up to a fifth,
    and of the hue by up to a twentieth; up to two of FixMatch's operations.
    """
    if not augmentations:
        return view
    degrees = 15.0 if "rotation" in augmentations else 0.0
    translate = 0.1 if "translation" in augmentations else 0.0
    added: list[Operation] = []
    if degrees or translate:
        added.append(RandomAffine(degrees, translate))
    if "jitter" in augmentations:
        added.append(ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05))
    if "randaugment" in augmentations:
        added.append(RandAugment(_fixmatch_augments(1.0), num_ops=2, p=0.5, levels=(1, 10)))
    name = "+".join((view.name, *augmentations))
    return replace(view, name=name, operations=(*view.operations, *added))


def affine(
    resolution: int = 64,
    flip_p: float = 0.5,
    degrees: float = 30.0,
    translate: float = 0.1,
    shear: float = 0.3,
    normalize: Normalize | None = IMAGENET,
) -> tuple[ViewPolicy, ViewPolicy]:
    """The centred square, flipped at random, and a random affine transformation of that view.

    Args:
        degrees: largest rotation.
        translate: largest shift, as a share of the side.
        shear: largest slope, of either axis.
        normalize: None delivers values in [0, 1].
    """
    flip = HorizontalFlip(flip_p)
    slopes = (Augment("shear_x", 0.0, shear, signed=True), Augment("shear_y", 0.0, shear, signed=True))
    warps = (RandomAffine(degrees, translate), RandAugment(slopes, num_ops=1, p=1.0))
    plain = ViewPolicy("anchor", resolution, CenterCrop(1.0), (flip,), normalize)
    return plain, replace(plain, name="affine", operations=(flip, *warps), shares_draws_of=1)


def rotations(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
) -> tuple[ViewPolicy, ...]:
    """The four views of RotNet: one crop, turned counter-clockwise by 0, 90, 180 and 270 degrees.

    `crop_flip` with `engine.objectives.rotnet.rotate_four`, which turns the images on the device, moves a
    quarter of the bytes there.

    Source: Gidaris et al. 2018, section 3.
    """
    plain = crop_flip(resolution, min_scale, flip_p, normalize)
    return tuple(
        replace(
            plain,
            name=f"rotation_{90 * turns}",
            operations=(*plain.operations, QuarterTurn(turns)),
            shares_draws_of=turns,
        )
        for turns in range(4)
    )


def tiles(
    tile_size: int = 64, cell: int = 75, min_scale: float = 0.08, gray_p: float = 0.3, grid: int = 3
) -> tuple[ViewPolicy, ...]:
    """Tiles of one crop, row by row, each at a random place in its cell and standardised by itself.

    With `shuffle_tiles` they are the puzzle of Noroozi, Favaro 2016 (section 4: crop of 225, cells of 75,
    tiles of 64 pixels); the centre and one other are the pair of Doersch et al. 2015 (section 3).

    Args:
        tile_size: side of a tile in pixels.
        cell: side of a cell in pixels; the gaps between tiles keep edges from revealing the order.
        min_scale: smallest share of the image area that the crop may have.
        gray_p: probability that all tiles are gray, since chromatic aberration would reveal their places.
        grid: cells per side.
    """
    crop = RandomResizedCrop(scale=(min_scale, 1.0))
    return tuple(
        ViewPolicy(
            name=f"tile_{number}",
            resolution=tile_size,
            geometry=Tile(number // grid, number % grid, grid, cell, crop),
            operations=(Grayscale(gray_p),),
            normalize=Standardize(),
            shares_draws_of=number,
        )
        for number in range(grid**2)
    )


def reconstruction(resolution: int = 64, flip_p: float = 0.5) -> ViewPolicy:
    """Input and target of an autoencoder: the centred square in [0, 1], flipped at random."""
    return ViewPolicy("reconstruction", resolution, CenterCrop(1.0), (HorizontalFlip(flip_p),), None)


def evaluation(
    resolution: int = 224, fraction: float | None = None, normalize: Normalize | None = IMAGENET
) -> ViewPolicy:
    """View for evaluation: the centred square, without randomness.

    Args:
        fraction: share of the short side that is kept; by default 224/256 from 128 pixels on (the usual
            "resize 256, crop 224") and the whole square below, as is usual for small images.
        normalize: None delivers values in [0, 1].
    """
    kept = fraction if fraction is not None else (224 / 256 if resolution >= 128 else 1.0)
    return ViewPolicy("evaluation", resolution, CenterCrop(kept), (), normalize)


def mirrored(
    resolution: int = 224, fraction: float | None = None, normalize: Normalize | None = IMAGENET
) -> ViewPolicy:
    """The view of `evaluation` mirrored left to right, for test-time augmentation."""
    plain = evaluation(resolution, fraction, normalize)
    return replace(plain, name="mirrored", operations=(HorizontalFlip(p=1.0),))
