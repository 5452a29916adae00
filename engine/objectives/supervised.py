"""Cross-entropy with smoothed labels, and the mixing of images by mixup and CutMix.

Sources: Szegedy et al. 2016 (label smoothing), Zhang et al. 2018, "mixup: Beyond Empirical Risk
Minimization" (arXiv 1710.09412), Yun et al. 2019, "CutMix" (arXiv 1905.04899).

An image is mixed with its neighbour in the batch, whose order is random anyway: rows 0 and 1, 2 and 3, ...
A batch is divided among ranks in parts of even size, and the share is drawn from (seed, step), so pairs and
shares are the same on any number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.choices import Mixing
from engine.objectives.cross_entropy import label_loss
from loaders.common.errors import UserError


@dataclass(frozen=True)
class Mixed:
    """Images mixed with their neighbours.

    Attributes:
        x: [B, 3, H, W].
        labels: int64 [B], labels of the images.
        partner_labels: int64 [B], labels of the neighbours that were mixed in.
        share: share of an image in its mixture, in [0, 1]; the rest is the neighbour's.
    """

    x: Tensor
    labels: Tensor
    partner_labels: Tensor
    share: float

    def shares(self, num_classes: int) -> Tensor:
        """Return the share of each class in each mixture, float32 [B, C]."""
        own, partner = (F.one_hot(y, num_classes).float() for y in (self.labels, self.partner_labels))
        return self.share * own + (1.0 - self.share) * partner


def draw_share(alpha: float, seed: int, step: int) -> float:
    """Draw a share from Beta(alpha, alpha), a pure function of seed and step."""
    return float(np.random.Generator(np.random.Philox(key=[seed % 2**64, step])).beta(alpha, alpha))


def draw_box(share: float, height: int, width: int, seed: int, step: int) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of a box with 1 - share of the area and a uniform centre, clipped."""
    generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, step], counter=1 << 64))
    side = math.sqrt(1.0 - share)
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return max(0, y - half_h), min(height, y + half_h), max(0, x - half_w), min(width, x + half_w)


def mix(x: Tensor, labels: Tensor, mixing: Mixing, alpha: float, seed: int, step: int) -> Mixed:
    """Mix every image with its neighbour.

    Args:
        x: [B, 3, H, W]; B must be even if images are mixed.
        labels: int64 [B].
        mixing: "mixup" blends all pixels, "cutmix" pastes a box of the neighbour, "none" changes nothing.
        alpha: parameter of Beta(alpha, alpha); the papers have 0.2 (mixup on ImageNet) and 1 (CutMix).
        seed: seed of the run.
        step: step of the run; every step draws new numbers.

    Raises:
        UserError: an odd number of rows.
    """
    if mixing == "none":
        return Mixed(x, labels, labels, 1.0)
    if len(x) % 2:
        raise UserError(
            f"mixing: expected an even number of images on every process, found {len(x)}; change "
            "--batch-size or --micro-batch"
        )
    partner = torch.arange(len(x), device=x.device) ^ 1
    share = draw_share(alpha, seed, step)
    if mixing == "mixup":
        own = x.float() if x.element_size() == 2 else x  # so that only autocast rounds the mixture, once
        return Mixed(share * own + (1.0 - share) * own[partner], labels, labels[partner], share)
    height, width = x.shape[2:]
    top, bottom, left, right = draw_box(share, height, width, seed, step)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
    share = 1.0 - (bottom - top) * (right - left) / (height * width)
    return Mixed(mixed, labels, labels[partner], share)


def mixed_cross_entropy(
    logits: Tensor, mixed: Mixed, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy with both labels of each mixture, weighted by their shares.

    Args:
        logits: [B, C], of `mixed.x`.
        mixed: from `mix`.
        label_smoothing: share of the label that is spread evenly over all classes; 0.1 in the paper.
        weights: weight of each class, see `label_loss`.
    """
    own = label_loss(logits, mixed.labels, weights, label_smoothing)
    if mixed.share == 1.0:
        return own
    partner = label_loss(logits, mixed.partner_labels, weights, label_smoothing)
    return mixed.share * own + (1.0 - mixed.share) * partner
