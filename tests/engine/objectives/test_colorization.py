"""Colour conversion and colour bins equal known values and plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.objectives import colorization
from engine.objectives.colorization import (
    annealed_mean,
    color_bins,
    colorization_loss,
    encode,
    lab_to_rgb,
    rarity_weights,
    rgb_to_lab,
)

KNOWN = {
    (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
    (0.0, 1.0, 0.0): (87.73, -86.18, 83.18),
    (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
}
"""L*, a* and b* of the corners of sRGB, from tables of CIE 1976."""


def test_colours_of_the_corners_and_back() -> None:
    rgb = torch.tensor(list(KNOWN)).T[None, :, :, None]
    lab = rgb_to_lab(rgb)
    np.testing.assert_allclose(lab[0, :, :, 0].T, np.array(list(KNOWN.values())), atol=0.01)
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(x)), x, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # autocast must not round the targets
        torch.testing.assert_close(lab_to_rgb(rgb_to_lab(x)), x, rtol=0, atol=1e-5)


def test_bins_are_those_with_a_colour() -> None:
    bins = color_bins()
    assert len(torch.unique(bins, dim=0)) == len(bins) == 261
    assert torch.equal((bins / 10).round() * 10, bins)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    nearest, _ = encode(rgb_to_lab(x)[:, 1:], bins)
    ab = rgb_to_lab(x)[0, 1:].reshape(2, -1).T
    assert float((bins[nearest[:, 0]] - ab).abs().max()) <= 5.01, "no colour is far from its bin"


def test_a_colour_is_spread_over_its_five_nearest_bins() -> None:
    bins = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0)) * 10
    nearest, shares = encode(torch.tensor([[[[3.0]], [[0.0]]]]), bins)
    assert bins[nearest[0]].tolist()[:2] == [[0.0, 0.0], [10.0, 0.0]]
    distance = (bins[nearest[0]] - torch.tensor([3.0, 0.0])).square().sum(1)
    expected = torch.exp(-distance / 50)
    torch.testing.assert_close(shares[0], expected / expected.sum())


def test_rare_colours_weigh_more_and_the_mean_over_places_is_one() -> None:
    bins = color_bins()
    torch.testing.assert_close(
        rarity_weights(torch.zeros(261), bins).mean(), torch.tensor(1.0), rtol=0.2, atol=0
    )
    counts = torch.zeros(261)
    gray = int((bins == 0).all(1).nonzero())
    counts[gray] = 1e6
    weights = rarity_weights(counts, bins)
    assert weights.argmin() == gray
    far = int(((bins - bins[gray]).square().sum(1)).argmax())
    assert weights[far] > 10 * weights[gray]


def test_distances_are_no_differences_of_large_products() -> None:
    """Differences of large products would lose small distances; on GPUs, already those between colours."""
    points = 1e4 + torch.rand(40, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        colorization._distances(points, points), torch.cdist(points.double(), points.double()).float(),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_the_loss_is_the_weighted_cross_entropy_of_places() -> None:
    generator = torch.Generator().manual_seed(2)
    bins, logits = color_bins()[:20], torch.randn(2, 20, 3, 3, dtype=torch.float64, generator=generator)
    ab = 60 * torch.randn(2, 2, 3, 3, generator=generator)
    nearest, shares = encode(ab, bins)
    rarity = torch.rand(20, generator=generator).double()
    target = torch.zeros(18, 20).scatter(1, nearest, shares).double()
    rows = logits.permute(0, 2, 3, 1).reshape(18, 20)
    own = torch.stack([F.cross_entropy(row[None], t[None]) for row, t in zip(rows, target, strict=True)])
    terms = colorization_loss(logits, nearest, shares.double(), rarity)
    assert float(terms.loss) == pytest.approx(float((own * rarity[nearest[:, 0]]).mean()), rel=1e-6)
    assert float(terms.top1) == pytest.approx(float((rows.argmax(1) == nearest[:, 0]).double().mean()))


def test_a_sure_distribution_gives_its_colour() -> None:
    bins = color_bins()
    logits = torch.zeros(1, 261, 2, 2)
    logits[:, 7] = 50.0
    torch.testing.assert_close(annealed_mean(logits, bins)[0, :, 0, 0], bins[7], rtol=0, atol=1e-3)
