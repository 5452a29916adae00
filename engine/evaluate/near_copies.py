"""Pairs of images whose features are nearly the same: copies that were cropped, scaled or compressed again.

Up to `MOST_EXACT` images every pair is compared. Beyond that, faiss's inverted file searches a few cells of
8-bit codes, and its candidates are compared exactly. A sample of images is compared with all others, so that
the recall, the share of true pairs found, is measured and not assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluate.knn import nearest

MOST_EXACT = 60_000
_PER_IMAGE = 8  # number of most similar images that are looked at, including the image itself
_SAMPLE = 512
_ROWS_PER_PART = 4096


@dataclass(frozen=True)
class NearPairs:
    """Pairs, the most similar first.

    Attributes:
        first: int64 [P], positions among the features.
        second: int64 [P], each larger than its `first`.
        similarity: float32 [P], cosines.
        recall: share of the sample's true pairs that the search found; 1 where every pair was compared.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]
    recall: float


def near_pairs(h: Tensor, threshold: float, seed: int = 0) -> NearPairs:
    """Find the pairs of images with a cosine similarity of at least a threshold.

    Args:
        h: float [N, D], such as a memory-mapped float16; the 7 most similar images of each are looked at.
        threshold: least similarity.
        seed: seed of the cells and of the sample.
    """
    k = min(_PER_IMAGE, len(h))
    if len(h) <= MOST_EXACT:
        parts = [
            nearest(h, h[first : first + _ROWS_PER_PART], k) for first in range(0, len(h), _ROWS_PER_PART)
        ]
        similarity, other = (torch.cat(column) for column in zip(*parts, strict=True))
        return _pairs(similarity, other, threshold, 1.0)
    similarity, other = _by_cells(h, k, seed)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(h), generator=generator)[:_SAMPLE].sort().values
    true_similarity, true = nearest(h, h[sample], k)
    wanted = (true_similarity >= threshold) & (true != sample.unsqueeze(1))
    found = (true.unsqueeze(2) == other[sample].unsqueeze(1)).any(2)
    recall = float((found & wanted).sum()) / max(1, int(wanted.sum())) if bool(wanted.any()) else 1.0
    return _pairs(similarity, other, threshold, recall)


def _by_cells(h: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor]:
    import faiss

    size, cells = h.shape[1], int(4 * math.sqrt(len(h)))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(h), generator=generator)[: 40 * cells].sort().values
    quantizer = faiss.IndexFlatIP(size)
    codes = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, codes, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed % 2**31
    index.train(F.normalize(h[sample].float(), dim=1).numpy())
    for first in range(0, len(h), _ROWS_PER_PART):
        index.add(F.normalize(h[first : first + _ROWS_PER_PART].float(), dim=1).numpy())
    index.nprobe = max(1, cells // 64)
    similarity, other = torch.empty(len(h), k), torch.empty(len(h), k, dtype=torch.int64)
    for first in range(0, len(h), _ROWS_PER_PART):
        query = F.normalize(h[first : first + _ROWS_PER_PART].float(), dim=1)
        found = torch.from_numpy(index.search(query.numpy(), k)[1])
        there = found.clamp_min(0)
        for place in range(k):  # exactly; one neighbour of each image at a time
            bank = F.normalize(h[there[:, place]].float(), dim=1)
            similarity[first : first + len(query), place] = (query * bank).sum(1)
        similarity[first : first + len(query)][found < 0] = -1.0
        other[first : first + len(query)] = there
    return similarity, other


def _pairs(similarity: Tensor, other: Tensor, threshold: float, recall: float) -> NearPairs:
    own = torch.arange(len(other)).unsqueeze(1).expand_as(other)
    kept = (similarity >= threshold) & (other != own)
    low, high = torch.minimum(own, other)[kept], torch.maximum(own, other)[kept]
    both = torch.stack([low, high], 1).numpy()
    pairs, where = np.unique(both, axis=0, return_index=True)
    found = similarity[kept].numpy()[where].astype(np.float32)
    order = np.argsort(-found, kind="stable")
    return NearPairs(pairs[order, 0], pairs[order, 1], found[order], recall)
