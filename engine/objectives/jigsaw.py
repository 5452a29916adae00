"""Jigsaw puzzles: predict which permutation, of a fixed set, the tiles of an image were shuffled by.

Source: Noroozi, Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
algorithm 1 for the set of permutations.

Shapes: B rows of this rank, P permutations, T tiles.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.common.errors import UserError


def permutation_set(num_permutations: int, num_tiles: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose permutations that are far from each other in Hamming distance.

    The first permutation is drawn at random. Each further one has the largest mean distance to those chosen
    before; of several, the first in lexicographic order is taken.

    Args:
        num_permutations: P, at most T!.
        num_tiles: T, at most 9, since all T! permutations are compared.
        seed: seed of the first permutation.

    Returns:
        int64 [P, T], all different.

    Raises:
        UserError: P is not in 1 to T!, or T not in 1 to 9.
    """
    if not 1 <= num_tiles <= 9:
        raise UserError(f"jigsaw: expected 1 to 9 tiles, found {num_tiles}")
    every = np.array(list(itertools.permutations(range(num_tiles))), np.uint8)
    if not 1 <= num_permutations <= len(every):
        raise UserError(
            f"permutations: expected 1 to {len(every)} of {num_tiles} tiles, found {num_permutations}"
        )
    total_distance = np.zeros(len(every), np.int64)
    chosen = [int(np.random.default_rng(seed).integers(len(every)))]
    while len(chosen) < num_permutations:
        total_distance += np.count_nonzero(every != every[chosen[-1]], axis=1)
        total_distance[chosen[-1]] = np.iinfo(np.int64).min // 2
        chosen.append(int(total_distance.argmax()))
    return every[chosen].astype(np.int64)


def shuffle_tiles(tiles: Tensor, permutations: Tensor, choice: Tensor) -> Tensor:
    """Put the tiles of each image into the order of its permutation.

    Args:
        tiles: [B, T, ...].
        permutations: int64 [P, T].
        choice: int64 [B], in [0, P).

    Returns:
        [B, T, ...]; place t of image b holds its tile permutations[choice[b], t].
    """
    rows = torch.arange(len(tiles), device=tiles.device).unsqueeze(1)
    return tiles[rows, permutations[choice]]
