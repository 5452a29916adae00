"""Barlow Twins: make the cross-correlation of two views' embeddings the identity.

Source: Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", equations 1 and 2 and algorithm 1.

Shapes: B rows of this rank, N rows of all ranks, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.train.distributed import all_reduce_sum, world_size


@dataclass(frozen=True)
class BarlowTerms:
    """The loss and its two parts, each a scalar.

    Attributes:
        loss: invariance + redundancy_weight * redundancy.
        invariance: sum over i of (C_ii - 1)^2.
        redundancy: sum over i != j of C_ij^2, not weighted.
    """

    loss: Tensor
    invariance: Tensor
    redundancy: Tensor


def cross_correlation(z_a_BD: Tensor, z_b_BD: Tensor) -> Tensor:
    """Correlate the features of two views over the rows of all ranks.

    Rank r holds z_a^r and z_b^r, and C = (1/N) sum_r (z_a^r)^T z_b^r is the same on every rank. Each rank
    then computes the same loss L(C). The backward pass of the sum over ranks adds dL/dC of the R ranks, so
    rank r's gradient is R * dL/dz^r. DistributedDataParallel averages these to
    (1/R) sum_r R * dL/dz^r * dz^r/dw = dL/dw, the gradient of one process on the joined batch. A collective
    without autograd would give only dL/dz^r, and the average would be dL/dw / R.

    Args:
        z_a_BD: [B, D], standardised over the N rows of all ranks; float32 or wider. B is equal on all ranks.
        z_b_BD: [B, D], the other view, standardised in the same way.

    Returns:
        C, [D, D].
    """
    num_rows = z_a_BD.shape[0] * world_size()
    return all_reduce_sum(z_a_BD.T @ z_b_BD / num_rows)


def barlow_twins_loss(z_a_BD: Tensor, z_b_BD: Tensor, redundancy_weight: float = 0.0051) -> BarlowTerms:
    """Compute the loss of Barlow Twins over the rows of all ranks.

    Args:
        z_a_BD: [B, D], standardised over all ranks (BatchNorm without scale and shift). Half precision is
            refused, because it is too coarse for a sum of D^2 entries.
        z_b_BD: [B, D], the other view, standardised in the same way.
        redundancy_weight: the paper's lambda, 0.0051.

    Returns:
        The loss and its parts, equal on every rank.

    Raises:
        ValueError: shapes or dtypes that differ, shapes that are not [B, D], or half precision.
    """
    if z_a_BD.ndim != 2 or z_a_BD.shape != z_b_BD.shape:
        raise ValueError(
            f"Barlow Twins: expected two embeddings [B, D], got {list(z_a_BD.shape)} and {list(z_b_BD.shape)}"
        )
    if z_a_BD.dtype not in (torch.float32, torch.float64) or z_b_BD.dtype != z_a_BD.dtype:
        raise ValueError(
            f"Barlow Twins: expected float32, got {z_a_BD.dtype} and {z_b_BD.dtype}; use .float()"
        )
    # Autocast would turn the product back into half precision.
    with torch.autocast(z_a_BD.device.type, enabled=False):
        c_DD = cross_correlation(z_a_BD, z_b_BD)
        diagonal = torch.diagonal(c_DD)
        invariance = (diagonal - 1.0).square().sum()
        redundancy = (c_DD - torch.diag(diagonal)).square().sum()
    return BarlowTerms(invariance + redundancy_weight * redundancy, invariance, redundancy)
