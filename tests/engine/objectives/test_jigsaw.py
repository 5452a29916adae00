"""The permutation set equals brute force, and shuffling equals plain indexing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from engine.objectives.cross_entropy import pretext_loss
from engine.objectives.jigsaw import permutation_set, shuffle_tiles
from loaders.common.errors import UserError


def hamming(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", [0, 3])
def test_each_permutation_is_the_farthest_from_those_before(seed: int) -> None:
    chosen = [tuple(p) for p in permutation_set(10, 4, seed).tolist()]
    for place in range(1, len(chosen)):
        rest = [p for p in itertools.permutations(range(4)) if p not in chosen[:place]]
        best = max(sum(hamming(p, q) for q in chosen[:place]) for p in rest)
        assert sum(hamming(chosen[place], q) for q in chosen[:place]) == best


def test_nine_tiles_are_far_apart() -> None:
    chosen = permutation_set(64, 9)
    distances = [hamming(a, b) for a, b in itertools.combinations(map(tuple, chosen.tolist()), 2)]
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(9) for _ in range(64)]
    at_random = [hamming(a, b) for a, b in itertools.combinations(drawn, 2)]
    assert len(set(map(tuple, chosen.tolist()))) == 64
    assert np.mean(distances) > np.mean(at_random)
    assert np.mean(distances[:9]) == 9.0, "the first of them differ everywhere"


def test_all_permutations_can_be_asked_for_but_no_more() -> None:
    assert len(np.unique(permutation_set(6, 3), axis=0)) == 6
    with pytest.raises(UserError, match="1 to 6 of 3 tiles, found 7"):
        permutation_set(7, 3)
    with pytest.raises(UserError, match="found 10"):
        permutation_set(2, 10)


def test_shuffling() -> None:
    tiles = torch.arange(2 * 3).view(2, 3, 1, 1, 1)
    permutations = torch.tensor([[0, 1, 2], [2, 0, 1]])
    shuffled = shuffle_tiles(tiles, permutations, torch.tensor([1, 0]))
    assert shuffled.flatten().tolist() == [2, 0, 1, 3, 4, 5]


WEIGHTS = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TILES = torch.randn(5, 4, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
CHOICE = torch.tensor([0, 5, 2, 3, 3])
SIX = torch.from_numpy(permutation_set(6, 4))


def order_loss(tiles: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Return the loss of a plain classifier with separate weights for every position of a tile."""
    placed = shuffle_tiles(tiles, SIX, choice).flatten(2)
    return pretext_loss(torch.einsum("bti,tic->bc", placed, WEIGHTS), choice).loss


def test_equals_the_equation() -> None:
    losses = []
    for image, choice in zip(TILES.numpy().reshape(5, 4, 3), CHOICE.tolist(), strict=True):
        order = SIX[choice].tolist()
        z = sum(image[tile] @ WEIGHTS[place].numpy() for place, tile in enumerate(order))
        losses.append(np.log(np.exp(z).sum()) - z[choice])
    assert float(order_loss(TILES, CHOICE)) == pytest.approx(float(np.mean(losses)), rel=1e-12)


def test_gradient() -> None:
    assert torch.autograd.gradcheck(lambda t: order_loss(t, CHOICE), TILES.clone().requires_grad_())


def test_does_not_depend_on_the_order_of_images_but_on_that_of_tiles() -> None:
    rows = torch.tensor([2, 0, 4, 3, 1])
    expected = float(order_loss(TILES, CHOICE))
    assert float(order_loss(TILES[rows], CHOICE[rows])) == pytest.approx(expected, rel=1e-12)
    assert float(order_loss(TILES.roll(1, 1), CHOICE)) != pytest.approx(expected, rel=1e-3)
