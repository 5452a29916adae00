"""Weighted nearest neighbours on representations: an evaluation without any training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries per matrix product: 1024 x one million bank rows of float32 stay near 4 GiB.
_CHUNK_SIZE = 1024


@torch.inference_mode()
def knn_scores(
    bank_h: Tensor,
    bank_labels: Tensor,
    query_h: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Let the k most similar images of a labelled bank vote for the class of each query.

    A neighbour with cosine similarity s votes for its class with weight exp(s / temperature).

    Args:
        bank_h: float32 [N, D], representations of the labelled images; any scale.
        bank_labels: int64 [N], in [0, num_classes).
        query_h: float32 [M, D], on the device of `bank_h`.
        num_classes: C.
        k: number of neighbours, at most N; 200 is usual for ImageNet, 20 for small sets.
        temperature: width of the vote.

    Returns:
        Shares of the vote, float32 [M, C]; rows sum to 1.

    Raises:
        ValueError: k outside 1..N, or a bank label outside the classes.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        section 3.4, with its temperature 0.07; k as in Caron et al. 2021 (DINO), appendix F.
    """
    if not 1 <= k <= len(bank_h):
        raise ValueError(
            f"kNN: expected k between 1 and the {len(bank_h)} images of the bank, got {k}; lower k"
        )
    if int(bank_labels.min()) < 0 or int(bank_labels.max()) >= num_classes:
        raise ValueError(f"kNN: expected bank labels in [0, {num_classes}); leave unlabelled images out")
    bank = F.normalize(bank_h, dim=1)
    votes = torch.zeros(len(query_h), num_classes, device=query_h.device)
    for first in range(0, len(query_h), _CHUNK_SIZE):
        query = F.normalize(query_h[first : first + _CHUNK_SIZE], dim=1)
        similarity, neighbour = (query @ bank.T).topk(k, dim=1)
        weights = torch.softmax(similarity / temperature, dim=1)
        votes[first : first + _CHUNK_SIZE].scatter_add_(1, bank_labels[neighbour], weights)
    return votes
