"""Pairs of images whose features are nearly the same: copies that were cropped, scaled or compressed again.

Up to `MOST_EXACT` images, every pair is compared. Beyond that, an inverted file of faiss searches 8-bit codes
in a few of its cells, and the candidates that it finds are compared exactly. A sample of images is then
compared with all others, to measure the recall: the share of the true pairs that the search found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluate.knn import nearest
from loaders.common.errors import UserError

MOST_EXACT = 60_000
MOST_PAIRS = 10_000_000
_PER_IMAGE = 8  # neighbours that are searched for first, including the image itself
_SAMPLE = 512
_ROWS_PER_PART = 4096
_SEED = 0  # of the cells and of the random samples
_ROUNDING = 1e-6  # tolerance of a cosine; for equal features, float32 is off by at most half of this
Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # [M, D] and k -> similarities and rows, [M, k] each


@dataclass(frozen=True)
class NearPairs:
    """Pairs of similar images, the most similar first.

    Attributes:
        first: int64 [P], positions among the features.
        second: int64 [P], each larger than its `first`.
        similarity: float32 [P], cosines.
        recall: estimated share of all similar pairs that were found, measured on a random sample of images;
            1 if every pair was compared, or no image of the sample is in a similar pair.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]
    recall: float


def near_pairs(h: Tensor, threshold: float) -> NearPairs:
    """Find the pairs of images with a cosine similarity of at least a threshold.

    Args:
        h: float [N, D], such as a memory-mapped float16.
        threshold: least similarity, above 0; a pair that is below it only by rounding still counts.

    Raises:
        UserError: more than about `MOST_PAIRS` pairs.
    """
    rows = torch.arange(len(h))
    if len(h) <= MOST_EXACT:
        keys, similarity = _above(partial(nearest, h), h, rows, threshold)
        recall = 1.0
    else:
        keys, similarity = _above(_in_cells(h), h, rows, threshold)
        generator = torch.Generator().manual_seed(_SEED)
        sample = torch.randperm(len(h), generator=generator)[:_SAMPLE].sort().values
        true, _ = _above(partial(nearest, h), h, sample, threshold)
        recall = float(np.isin(true, keys).mean()) if len(true) else 1.0
    order = np.argsort(-similarity, kind="stable")
    return NearPairs(keys[order] // len(h), keys[order] % len(h), similarity[order], recall)


def _above(
    search: Search, h: Tensor, rows: Tensor, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the similar pairs that contain one of `rows`, and their similarities.

    Each pair is encoded as first * N + second, in increasing order. If all k neighbours of an image are
    similar, there may be more such neighbours, so the search is repeated for this image with a larger k.
    """
    keys, similarities, k, number = [], [], _PER_IMAGE, 0
    while len(rows):
        k, again = min(k, len(h)), []
        for part in rows.split(max(1, _ROWS_PER_PART * _PER_IMAGE // k)):  # type: ignore[no-untyped-call]
            similarity, other = search(h[part], k)
            own, above = part.unsqueeze(1).expand_as(other), similarity >= threshold - _ROUNDING
            more = above.all(1) & (k < len(h))
            kept = above & (other != own) & ~more.unsqueeze(1)
            keys.append((torch.minimum(own, other) * len(h) + torch.maximum(own, other))[kept])
            similarities.append(similarity[kept])
            again.append(part[more])
            number += len(keys[-1])
            if number + k * sum(map(len, again)) > 2 * MOST_PAIRS:  # twice: a pair is found from both images
                raise UserError(
                    f"threshold: expected at most {MOST_PAIRS:,} pairs, found more at {threshold:g}; "
                    "raise --threshold"
                )
        rows, k = torch.cat(again), k * _PER_IMAGE
    pairs, where = np.unique(torch.cat(keys).numpy(), return_index=True)
    return pairs, torch.cat(similarities).numpy()[where].astype(np.float32)


def _in_cells(h: Tensor) -> Search:
    """Return a search in a few cells of an inverted file; the similarities it returns are exact cosines."""
    import faiss

    size, cells = h.shape[1], int(4 * math.sqrt(len(h)))
    generator = torch.Generator().manual_seed(_SEED)
    sample = torch.randperm(len(h), generator=generator)[: 40 * cells].sort().values
    quantizer = faiss.IndexFlatIP(size)
    codes = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, codes, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _SEED
    index.train(F.normalize(h[sample].float(), dim=1).numpy())
    for first in range(0, len(h), _ROWS_PER_PART):
        index.add(F.normalize(h[first : first + _ROWS_PER_PART].float(), dim=1).numpy())
    index.nprobe = max(1, cells // 64)

    def search(query_h: Tensor, k: int) -> tuple[Tensor, Tensor]:
        query = F.normalize(query_h.float(), dim=1)
        found = torch.from_numpy(index.search(query.numpy(), k)[1])
        there, similarity = found.clamp_min(0), torch.empty(found.shape)
        for place in range(k):  # exact cosines, for one neighbour of every image at a time
            bank = F.normalize(h[there[:, place]].float(), dim=1)
            similarity[:, place] = (query * bank).sum(1)
        similarity[found < 0] = -1.0
        return similarity, there

    return search
