"""SimCLR: find the other view of an image among all views of the batch.

Source: Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", equation 1 and algorithm 1 (NT-Xent).

Shapes: B rows of this rank, N rows of all ranks, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.objectives.cross_entropy import PretextTerms, pretext_loss
from engine.train.distributed import all_gather, rank, world_size


def simclr_loss(z_a_BD: Tensor, z_b_BD: Tensor, temperature: float = 0.1) -> PretextTerms:
    """Compute NT-Xent, averaged over this rank's 2B views, each compared with the 2N - 1 others of all ranks.

    Args:
        z_a_BD: [B, D], any scale, float32 or wider; B is equal on all ranks.
        z_b_BD: [B, D], the other view.
        temperature: divides the cosine similarity; 0.1 for ImageNet in the paper.

    Returns:
        The loss, and the share of views whose nearest other view is of the same image.

    Raises:
        ValueError: shapes or dtypes that differ, shapes that are not [B, D], or half precision.
    """
    if z_a_BD.ndim != 2 or z_a_BD.shape != z_b_BD.shape:
        raise ValueError(
            f"SimCLR: expected two embeddings [B, D], got {list(z_a_BD.shape)} and {list(z_b_BD.shape)}"
        )
    if z_a_BD.dtype not in (torch.float32, torch.float64) or z_b_BD.dtype != z_a_BD.dtype:
        raise ValueError(f"SimCLR: expected float32, got {z_a_BD.dtype} and {z_b_BD.dtype}; use .float()")
    num_rows, device = len(z_a_BD), z_a_BD.device
    # Autocast would turn the product back into half precision.
    with torch.autocast(device.type, enabled=False):
        own_a, own_b = F.normalize(z_a_BD, dim=1), F.normalize(z_b_BD, dim=1)
        every = torch.cat([all_gather(own_a), all_gather(own_b)])
        similarity = torch.cat([own_a, own_b]) @ every.T / temperature
        place_a = rank() * num_rows + torch.arange(num_rows, device=device)
        place_b = place_a + num_rows * world_size()
        itself, other = torch.cat([place_a, place_b]), torch.cat([place_b, place_a])
        similarity = similarity.scatter(1, itself.unsqueeze(1), float("-inf"))
        return pretext_loss(similarity, other)
