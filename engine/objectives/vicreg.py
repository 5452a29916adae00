"""VICReg: make the embeddings of two views equal, and their features varied and uncorrelated.

Source: Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", algorithm 1. Unlike in equation 5, the invariance term is averaged over features, not summed;
unlike in the authors' code, the variance term is not halved.

Shapes: B rows of this rank, N rows of all ranks, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.train.distributed import all_reduce_sum, world_size

EPSILON = 1e-4


@dataclass(frozen=True)
class VicRegTerms:
    """The loss and its three parts, each a scalar, the same on every rank.

    Attributes:
        loss: the weighted sum.
        invariance: mean squared difference of the views.
        variance: mean over features of max(0, 1 - standard deviation), summed over both views.
        covariance: sum of squared covariances of different features, divided by D, summed over both views.
    """

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def covariance_matrix(z_BD: Tensor) -> Tensor:
    """Return the unbiased covariance [D, D] over the rows of all ranks, the same on every rank.

    Args:
        z_BD: [B, D]; B is equal on all ranks, and there are at least 2 rows in all.
    """
    num_rows = len(z_BD) * world_size()
    centred = z_BD - all_reduce_sum(z_BD.sum(0)) / num_rows
    return all_reduce_sum(centred.T @ centred) / (num_rows - 1)


def vicreg_loss(
    z_a_BD: Tensor,
    z_b_BD: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> VicRegTerms:
    """Compute the loss of VICReg over the rows of all ranks.

    Args:
        z_a_BD: [B, D], float32 or wider.
        z_b_BD: [B, D], the other view.
        invariance_weight: the paper's lambda, 25.
        variance_weight: the paper's mu, 25.
        covariance_weight: the paper's nu, 1.

    Raises:
        ValueError: shapes or dtypes differ, shapes are not [B, D], half precision, or fewer than two rows
            over all ranks.
    """
    if z_a_BD.ndim != 2 or z_a_BD.shape != z_b_BD.shape or len(z_a_BD) * world_size() < 2:
        raise ValueError(
            "VICReg: expected two embeddings [B, D] of at least 2 rows, got "
            f"{list(z_a_BD.shape)} and {list(z_b_BD.shape)}"
        )
    if z_a_BD.dtype not in (torch.float32, torch.float64) or z_b_BD.dtype != z_a_BD.dtype:
        raise ValueError(f"VICReg: expected float32, got {z_a_BD.dtype} and {z_b_BD.dtype}; use .float()")
    size = z_a_BD.shape[1]
    with torch.autocast(z_a_BD.device.type, enabled=False):
        squared = all_reduce_sum((z_a_BD - z_b_BD).square().sum())
        invariance = squared / (z_a_BD.numel() * world_size())
        variance, covariance = torch.zeros_like(invariance), torch.zeros_like(invariance)
        for z in (z_a_BD, z_b_BD):
            matrix = covariance_matrix(z)
            variances = torch.diagonal(matrix)
            variance = variance + torch.relu(1.0 - (variances + EPSILON).sqrt()).mean()
            covariance = covariance + (matrix - torch.diag(variances)).square().sum() / size
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return VicRegTerms(loss, invariance, variance, covariance)
