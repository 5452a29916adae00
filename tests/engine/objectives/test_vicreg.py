"""VICReg's loss equals one with NumPy's covariance, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.vicreg import vicreg_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(z_a: Tensor, z_b: Tensor) -> tuple[float, float, float]:
    a, b = z_a.numpy(), z_b.numpy()
    size = a.shape[1]
    invariance = np.mean((a - b) ** 2)
    variance = covariance = 0.0
    for z in (a, b):
        c = np.cov(z, rowvar=False)
        variance += np.mean([max(0.0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(size)])
        covariance += sum(c[i, j] ** 2 for i in range(size) for j in range(size) if i != j) / size
    return float(invariance), float(variance), float(covariance)


def test_equals_the_algorithm() -> None:
    z_a, z_b = 0.7 * normal(20, 5), 0.7 * normal(20, 5, seed=1) + 3
    terms = vicreg_loss(z_a, z_b)
    invariance, variance, covariance = reference(z_a, z_b)
    assert float(terms.invariance) == pytest.approx(invariance, rel=1e-12)
    assert float(terms.variance) == pytest.approx(variance, rel=1e-12)
    assert float(terms.covariance) == pytest.approx(covariance, rel=1e-12)
    assert variance > 0
    expected = 25 * invariance + 25 * variance + covariance
    assert float(terms.loss) == pytest.approx(expected, rel=1e-12), "the default weights are the paper's"
    weighted = vicreg_loss(z_a, z_b, 1.0, 2.0, 3.0)
    assert float(weighted.loss) == pytest.approx(invariance + 2 * variance + 3 * covariance)


def test_gradient() -> None:
    inputs = [(0.5 * normal(5, 3)).requires_grad_(), (0.5 * normal(5, 3, seed=1)).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: vicreg_loss(a, b).loss, inputs)


def test_equal_wide_decorrelated_views_cost_nothing() -> None:
    z = normal(20, 4)
    z = 3 * torch.linalg.qr(z - z.mean(0)).Q * 20**0.5
    assert float(vicreg_loss(z, z).loss) == pytest.approx(0.0, abs=1e-20)


def test_collapse_costs_the_variance() -> None:
    z = torch.ones(6, 4, dtype=torch.float64)
    assert float(vicreg_loss(z, z).loss) == pytest.approx(25 * 2 * (1 - 0.01))


def test_does_not_depend_on_order_shift_or_which_view_is_first() -> None:
    z_a, z_b = 0.7 * normal(8, 5), 0.7 * normal(8, 5, seed=1)
    expected = float(vicreg_loss(z_a, z_b).loss)
    rows, features = torch.randperm(8), torch.randperm(5)
    assert float(vicreg_loss(z_a[rows][:, features], z_b[rows][:, features]).loss) == pytest.approx(expected)
    assert float(vicreg_loss(z_a + 9, z_b + 9).loss) == pytest.approx(expected)
    assert float(vicreg_loss(z_b, z_a).loss) == pytest.approx(expected)


def test_refuses_other_shapes_and_half_precision() -> None:
    z = normal(4, 3)
    with pytest.raises(ValueError, match="at least 2 rows"):
        vicreg_loss(z[:1], z[:1])
    with pytest.raises(ValueError, match="expected float32"):
        vicreg_loss(z.bfloat16(), z.bfloat16())
