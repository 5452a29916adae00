"""Weighted nearest neighbours on representations: an evaluation without any training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of `query_h` and of `bank_h` at once; the similarities of 1024 x 65,536 pairs take 256 MiB of float32.
_CHUNK_SIZE = 1024
_BANK_CHUNK = 65_536


@torch.inference_mode()
def nearest(bank_h: Tensor, query_h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of `bank_h` most similar to each row of `query_h`, exactly; `bank_h` is read in parts.

    Args:
        bank_h: float [N, D], any scale, such as a memory-mapped float16.
        query_h: float [M, D], on the device of `bank_h`.
        k: at most N.

    Returns:
        Cosine similarities float32 [M, k], decreasing, and rows int64 [M, k].
    """
    query = F.normalize(query_h.float(), dim=1)
    best: tuple[Tensor, Tensor] | None = None
    for first in range(0, len(bank_h), _BANK_CHUNK):
        bank = F.normalize(bank_h[first : first + _BANK_CHUNK].float(), dim=1)
        similarity, row = (query @ bank.T).topk(min(k, len(bank)), dim=1)
        row += first
        if best is not None:
            similarity, row = torch.cat([best[0], similarity], 1), torch.cat([best[1], row], 1)
            similarity, place = similarity.topk(min(k, similarity.shape[1]), dim=1)
            row = row.gather(1, place)
        best = (similarity, row)
    assert best is not None
    return best


@torch.inference_mode()
def knn_scores(
    bank_h: Tensor,
    bank_labels: Tensor,
    query_h: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Let the k most similar images of a labelled set, the bank, vote for the class of each query image.

    A neighbour with cosine similarity s votes for its class with weight exp(s / temperature).

    Args:
        bank_h: float [N, D], representations of the labelled images; any scale; may be memory-mapped.
        bank_labels: int64 [N], in [0, num_classes).
        query_h: float [M, D], on the device of `bank_h`.
        num_classes: C.
        k: number of neighbours, at most N; 200 is usual for ImageNet, 20 for small sets.
        temperature: the lower, the more the nearest neighbours outweigh the others.

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
    votes = torch.zeros(len(query_h), num_classes, device=query_h.device)
    for first in range(0, len(query_h), _CHUNK_SIZE):
        similarity, neighbour = nearest(bank_h, query_h[first : first + _CHUNK_SIZE], k)
        weights = torch.softmax(similarity / temperature, dim=1)
        votes[first : first + _CHUNK_SIZE].scatter_add_(1, bank_labels[neighbour], weights)
    return votes
