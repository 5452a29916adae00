"""Barlow Twins' loss equals a second, plain implementation, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.barlow import barlow_twins_loss, cross_correlation


def standardised(rows: int, size: int, seed: int) -> Tensor:
    z = torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (z - z.mean(0)) / z.std(0, correction=0)


def reference(z_a: Tensor, z_b: Tensor, redundancy_weight: float) -> float:
    """Compute equation 1 of the paper term by term, with NumPy's correlation coefficients."""
    size = z_a.shape[1]
    c = np.corrcoef(z_a.numpy(), z_b.numpy(), rowvar=False)[:size, size:]
    on = sum((1 - c[i, i]) ** 2 for i in range(size))
    off = sum(c[i, j] ** 2 for i in range(size) for j in range(size) if i != j)
    return float(on + redundancy_weight * off)


@pytest.mark.parametrize("redundancy_weight", [0.0051, 1.0, 0.0])
def test_equals_the_equation(redundancy_weight: float) -> None:
    z_a, z_b = standardised(20, 6, 0), standardised(20, 6, 1)
    terms = barlow_twins_loss(z_a, z_b, redundancy_weight)
    assert float(terms.loss) == pytest.approx(reference(z_a, z_b, redundancy_weight), rel=1e-12)
    assert float(terms.loss) == pytest.approx(float(terms.invariance + redundancy_weight * terms.redundancy))


def test_default_weight_is_the_papers() -> None:
    z_a, z_b = standardised(20, 6, 0), standardised(20, 6, 1)
    assert float(barlow_twins_loss(z_a, z_b).loss) == pytest.approx(reference(z_a, z_b, 0.0051), rel=1e-12)


def test_gradient() -> None:
    z_a, z_b = standardised(6, 3, 0).requires_grad_(), standardised(6, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, 0.3).loss, (z_a, z_b))


def test_equal_decorrelated_views_cost_nothing() -> None:
    columns = torch.linalg.qr(standardised(20, 4, 0)).Q  # orthonormal columns, which keep the mean 0
    z = columns * 20**0.5
    assert float(barlow_twins_loss(z, z).loss) == pytest.approx(0.0, abs=1e-20)


def test_equal_views_whose_features_repeat_cost_redundancy_only() -> None:
    z = standardised(20, 1, 0).repeat(1, 3)
    terms = barlow_twins_loss(z, z)
    assert float(terms.invariance) == pytest.approx(0.0, abs=1e-20)
    assert float(terms.redundancy) == pytest.approx(6.0)


def test_opposite_views_cost_four_per_feature() -> None:
    z = standardised(20, 5, 0)
    assert float(barlow_twins_loss(z, -z).invariance) == pytest.approx(20.0)


def test_does_not_depend_on_the_order_of_rows_features_or_views() -> None:
    z_a, z_b = standardised(20, 6, 0), standardised(20, 6, 1)
    expected = float(barlow_twins_loss(z_a, z_b).loss)
    rows, features = torch.randperm(20), torch.randperm(6)
    assert float(barlow_twins_loss(z_a[rows], z_b[rows]).loss) == pytest.approx(expected)
    assert float(barlow_twins_loss(z_a[:, features], z_b[:, features]).loss) == pytest.approx(expected)
    assert float(barlow_twins_loss(z_b, z_a).loss) == pytest.approx(expected)
    assert torch.equal(cross_correlation(z_a, z_b), cross_correlation(z_b, z_a).T)


def test_autocast_does_not_reach_the_correlation() -> None:
    z_a, z_b = standardised(20, 6, 0).float(), standardised(20, 6, 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = barlow_twins_loss(z_a, z_b).loss
    assert torch.equal(inside, barlow_twins_loss(z_a, z_b).loss)


def test_refuses_other_shapes_and_half_precision() -> None:
    z = standardised(4, 3, 0)
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[4, 2\]"):
        barlow_twins_loss(z, z[:, :2])
    with pytest.raises(ValueError, match="expected float32"):
        barlow_twins_loss(z.bfloat16(), z.bfloat16())
