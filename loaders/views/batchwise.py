"""MixUp and CutMix: operations on a finished batch of any backend.

Both are pure functions of a batch and of numbers drawn from (seed, step). Each image is mixed with its
neighbour (the batch rolled by one), as in torchvision, because the order of a batch is already random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from loaders.common.errors import UserError
from loaders.kernels.random import uniform4

_MIX = 0xFFFF  # view number of batch operations in the random numbers, above that of any view
_MIXUP, _CUTMIX = 0, 1


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed.

    Attributes:
        share: share of each image's own label, in [0, 1].
        box: top, left, bottom, right of the pasted rectangle in pixels; None blends whole images.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mixup(alpha: float, seed: int, step: int) -> Mixing:
    """Draw the share of MixUp from Beta(alpha, alpha).

    Args:
        alpha: concentration, above 0; 1 is uniform.
        seed: any int64.
        step: global step.

    Raises:
        UserError: alpha is not above 0.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
    """
    return Mixing(_beta(alpha, seed, step, _MIXUP))


def draw_cutmix(alpha: float, seed: int, step: int, height: int, width: int) -> Mixing:
    """Draw the rectangle of CutMix: a share 1 - Beta(alpha, alpha) of the view, then cut off at its borders.

    Args:
        alpha: concentration, above 0; the paper takes 1.
        seed: any int64.
        step: global step.
        height, width: size of the views in pixels.

    Raises:
        UserError: alpha is not above 0.

    Source: Yun et al. 2019, "CutMix", section 3.1.
    """
    share = _beta(alpha, seed, step, _CUTMIX)
    u0, u1, _, _ = uniform4(np.int64(seed), 0, step, _MIX, _CUTMIX, 0)
    half_height = int(0.5 * np.sqrt(1.0 - share) * height)
    half_width = int(0.5 * np.sqrt(1.0 - share) * width)
    row, column = int(u0 * height), int(u1 * width)
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    share = 1.0 - (bottom - top) * (right - left) / (height * width)
    return Mixing(share, (top, left, bottom, right))


def mix_views(views: Tensor, mixing: Mixing) -> Tensor:
    """Mix each image with the one before it.

    Args:
        views: [B, C, H, W], floating point to be blended, any dtype if a rectangle is pasted.
        mixing: what `draw_mixup` or `draw_cutmix` drew.

    Returns:
        A new tensor of the same shape, dtype, device and memory format.

    Raises:
        UserError: views of integers cannot be blended.
    """
    others = views.roll(1, 0)
    if mixing.box is None:
        if not views.is_floating_point():
            raise UserError(f"MixUp: expected floating point views, found {views.dtype}; load float32 ones")
        return others.mul_(1.0 - mixing.share).add_(views, alpha=mixing.share)
    top, left, bottom, right = mixing.box
    mixed = views.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed


def mix_labels(labels: Tensor, mixing: Mixing, num_classes: int) -> Tensor:
    """Mix the labels as `mix_views` mixes the images.

    Args:
        labels: int64 [B] in [0, num_classes), or floating point [B, num_classes], such as soft labels.
        mixing: the same mixing as for `mix_views`.

    Returns:
        Floating point [B, num_classes]; each row sums to 1 if the given rows do.

    Raises:
        UserError: labels of another shape, or a row without a label.
    """
    if labels.ndim == 1:
        if bool((labels < 0).any()):
            raise UserError(
                "labels to mix: expected one per image, found -1; leave out images without a label"
            )
        labels = functional.one_hot(labels, num_classes).to(torch.get_default_dtype())
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        raise UserError(
            f"labels to mix: expected [B] or [B, {num_classes}], found {list(labels.shape)}; change them"
        )
    return labels * mixing.share + labels.roll(1, 0) * (1.0 - mixing.share)


def _beta(alpha: float, seed: int, step: int, operation: int) -> float:
    """Return the quantile of Beta(alpha, alpha) at a uniform number of (seed, step)."""
    from scipy.special import betaincinv

    if not alpha > 0:
        raise UserError(f"alpha of a mix: expected a number above 0, found {alpha}; 1 draws uniformly")
    uniform = uniform4(np.int64(seed), 0, step, _MIX, operation, 1)[0]
    return float(betaincinv(alpha, alpha, uniform))
