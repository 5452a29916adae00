"""The views of the papers, as policies."""

from __future__ import annotations

from loaders.views.policy import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    PaddedCrop,
    RandomResizedCrop,
    Solarize,
    ViewPolicy,
)

IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _barlow(
    name: str,
    resolution: int,
    blur_p: float,
    solarize_p: float,
    min_scale: float,
    flip_p: float,
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
            GaussianBlur(p=blur_p, sigma=(0.1, 2.0)),
            Solarize(p=solarize_p, threshold=128.0),
        ),
        normalize=normalize,
        interpolation="bicubic",
    )


def barlow_a(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """First view of Barlow Twins: always blurred, never solarised.

    Args:
        resolution: side of the view in pixels.
        min_scale: smallest share of the image area a crop may have; 0.08 in the paper.
        flip_p: probability of a horizontal flip; 0.5 in the paper, 0 where left and right carry meaning.
        normalize: None delivers values in [0, 1].

    Source: Zbontar et al. 2021, appendix A and the authors' code (class Transform).
    """
    return _barlow("barlow_a", resolution, 1.0, 0.0, min_scale, flip_p, normalize)


def barlow_b(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """Second view of Barlow Twins: blurred with probability 0.1, solarised with 0.2; see `barlow_a`."""
    return _barlow("barlow_b", resolution, 0.1, 0.2, min_scale, flip_p, normalize)


def crop_flip(
    resolution: int = 224,
    min_scale: float = 0.08,
    flip_p: float = 0.5,
    normalize: Normalize | None = IMAGENET,
) -> ViewPolicy:
    """Random resized crop and flip: the supervised ImageNet view (He et al. 2015; Szegedy et al. 2015)."""
    geometry = RandomResizedCrop(scale=(min_scale, 1.0))
    return ViewPolicy("crop_flip", resolution, geometry, (HorizontalFlip(flip_p),), normalize)


def weak(resolution: int = 32, flip_p: float = 0.5, normalize: Normalize | None = IMAGENET) -> ViewPolicy:
    """Weak view of FixMatch: flip, crop after padding by 12.5 % (Sohn et al. 2020, section 2.3)."""
    return ViewPolicy("weak", resolution, PaddedCrop(0.125), (HorizontalFlip(flip_p),), normalize)


def evaluation(
    resolution: int = 224, fraction: float | None = None, normalize: Normalize | None = IMAGENET
) -> ViewPolicy:
    """Deterministic centred square.

    Args:
        resolution: side of the view in pixels.
        fraction: share of the short side that is kept; by default 224/256 from 128 pixels on (the usual
            "resize 256, crop 224") and the whole square below, as is usual for small images.
        normalize: None delivers values in [0, 1].
    """
    kept = fraction if fraction is not None else (224 / 256 if resolution >= 128 else 1.0)
    return ViewPolicy("evaluation", resolution, CenterCrop(kept), (), normalize)
