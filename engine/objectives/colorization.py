"""Colourisation: predict, from the lightness of an image, a distribution over colours at each place.

Source: Zhang, Isola, Efros 2016, "Colorful Image Colorization" (arXiv 1603.08511), section 2; the
colour space is CIE 1976 L*a*b* of sRGB under D65.

Shapes: B rows of this rank, Q bins of colour, N = B * H' * W' places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.objectives.precision import at_least_float32

BIN_SIDE = 10.0
_SIGMA = 5.0  # of the Gaussians that weigh neighbouring bins and smooth the frequencies of bins
_NEIGHBOURS = 5
_UNIFORM_SHARE = 0.5  # lambda, share of the uniform distribution that is mixed into the frequencies
_ANNEALING = 0.38  # temperature of the annealed mean
_WHITE = (0.95047, 1.0, 1.08883)
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_LINEAR_BELOW = 6.0 / 29.0


@cache
def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrix from linear sRGB to XYZ, its inverse, and the white point, on a device."""
    matrix = torch.tensor(_TO_XYZ, dtype=torch.float64)
    white = torch.tensor(_WHITE, dtype=torch.float64)[:, None, None]
    return matrix.to(device, dtype), torch.linalg.inv(matrix).to(device, dtype), white.to(device, dtype)


def _mix_channels(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a matrix [3, 3] to [..., 3, H, W]; autocast would round a matrix product to half precision."""
    return (matrix[:, :, None, None] * x.unsqueeze(-4)).sum(-3)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB in [0, 1], [..., 3, H, W], to L* in [0, 100], a* and b*, float32 or wider, same shape."""
    x = at_least_float32(rgb)
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.0) + 0.055) / 1.055) ** 2.4)
    matrix, _, white = _constants(x.device, x.dtype)
    t = _mix_channels(matrix, linear) / white
    f = torch.where(
        t > _LINEAR_BELOW**3, t.clamp_min(1e-9) ** (1 / 3), t / (3 * _LINEAR_BELOW**2) + 4.0 / 29.0
    )
    fx, fy, fz = f.unbind(-3)
    return torch.stack([116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)], -3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert L*, a* and b*, [..., 3, H, W], to sRGB, clipped to [0, 1]."""
    lightness, a, b = at_least_float32(lab).unbind(-3)
    fy = (lightness + 16.0) / 116.0
    f = torch.stack([fy + a / 500.0, fy, fy - b / 200.0], -3)
    t = torch.where(f > _LINEAR_BELOW, f**3, 3 * _LINEAR_BELOW**2 * (f - 4.0 / 29.0))
    _, inverse, white = _constants(t.device, t.dtype)
    linear = _mix_channels(inverse, t * white).clamp(0.0, 1.0)
    srgb = torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055
    )
    return srgb.clamp(0.0, 1.0)


@cache
def color_bins() -> Tensor:
    """Return the centres of the (a*, b*) bins that sRGB colours fall into, float32 [Q, 2].

    The bins are squares of side 10 around multiples of 10, as in the paper. Each of these 261 bins holds an
    sRGB colour; the paper counts 313, by a rule that it does not give.
    """
    levels = torch.linspace(0.0, 1.0, 86)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij"))
    ab = rgb_to_lab(cube.reshape(3, 1, -1))[1:, 0]
    bins: Tensor = torch.unique((ab / BIN_SIDE).round(), dim=1).T.contiguous() * BIN_SIDE
    return bins


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances of all pairs, [N, M], without a matrix product, which GPUs may round to TF32."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def encode(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Spread each colour over its five nearest bins by a Gaussian with deviation 5 (soft encoding).

    Args:
        ab: [B, 2, H', W'].
        bins: [Q, 2], from `color_bins`.

    Returns:
        Bins int64 [N, 5], the nearest first, and their weights, float32 [N, 5], which sum to 1.
    """
    distances = _distances(ab.movedim(1, 3).reshape(-1, 2), bins)
    distance, nearest = distances.topk(_NEIGHBOURS, largest=False)
    return nearest, (-(distance**2) / (2 * _SIGMA**2)).softmax(1)


def rarity_weights(counts: Tensor, bins: Tensor) -> Tensor:
    """Return the weight of each bin, inverse to its smoothed frequency mixed with a uniform one (eq. 4).

    Args:
        counts: [Q], number of places seen so far with a colour in each bin; may be 0.
        bins: [Q, 2], from `color_bins`.

    Returns:
        float32 [Q]; the mean over bins, weighted by the smoothed frequencies, is 1.
    """
    frequency = (counts.double() + 1.0) / (counts.double() + 1.0).sum()
    blur = (-(_distances(bins, bins).double() ** 2) / (2 * _SIGMA**2)).exp()
    smooth = (blur / blur.sum(0)) @ frequency
    weights = 1.0 / ((1.0 - _UNIFORM_SHARE) * smooth + _UNIFORM_SHARE / len(bins))
    return (weights / (smooth * weights).sum()).float()


def annealed_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Return the colours [B, 2, H', W'] of logits [B, Q, H', W'], between mean and mode (eq. 5)."""
    shares = (at_least_float32(logits) / _ANNEALING).softmax(1)
    return torch.einsum("bqhw,qc->bchw", shares, bins)


@dataclass(frozen=True)
class ColorizationTerms:
    """The loss and an accuracy, scalars averaged over the rank's places.

    Attributes:
        loss: cross-entropy with the soft encoding, weighted by the rarity of the nearest bin (eq. 2).
        top1: share of places whose nearest bin has the highest logit, without gradient.
    """

    loss: Tensor
    top1: Tensor


def colorization_loss(logits: Tensor, nearest: Tensor, shares: Tensor, rarity: Tensor) -> ColorizationTerms:
    """Compute the cross-entropy of the colours of all places.

    Args:
        logits: [B, Q, H', W'].
        nearest: int64 [N, 5], from `encode`.
        shares: [N, 5], from `encode`.
        rarity: [Q], from `rarity_weights`.
    """
    flat = at_least_float32(logits).movedim(1, 3).reshape(-1, logits.shape[1])
    per_place = -(F.log_softmax(flat, 1).gather(1, nearest) * shares).sum(1)
    top1 = (flat.detach().argmax(1) == nearest[:, 0]).float().mean()
    return ColorizationTerms((per_place * rarity[nearest[:, 0]]).mean(), top1)
