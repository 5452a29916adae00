"""NT-Xent equals the equation written with loops, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.simclr import simclr_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(z_a: Tensor, z_b: Tensor, temperature: float) -> tuple[float, float]:
    z = np.concatenate([z_a.numpy(), z_b.numpy()])
    num_views = len(z)
    losses, hits = [], []
    for i in range(num_views):
        partner = (i + num_views // 2) % num_views
        others = [j for j in range(num_views) if j != i]
        s = {j: z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for j in others}
        losses.append(
            -np.log(np.exp(s[partner] / temperature) / sum(np.exp(v / temperature) for v in s.values()))
        )
        hits.append(max(s, key=s.__getitem__) == partner)
    return float(np.mean(losses)), float(np.mean(hits))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_equation(temperature: float) -> None:
    z_a = normal(5, 4)
    z_b = z_a + 0.5 * normal(5, 4, seed=1)
    terms = simclr_loss(z_a, z_b, temperature)
    loss, top1 = reference(z_a, z_b, temperature)
    assert float(terms.loss) == pytest.approx(loss, rel=1e-12)
    assert float(terms.top1) == pytest.approx(top1)


def test_default_temperature_is_the_papers() -> None:
    z_a, z_b = normal(5, 4), normal(5, 4, seed=1)
    assert float(simclr_loss(z_a, z_b).loss) == pytest.approx(reference(z_a, z_b, 0.1)[0])


def test_gradient() -> None:
    inputs = [normal(3, 3).requires_grad_(), normal(3, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: simclr_loss(a, b, 0.5).loss, inputs)


def test_collapse_costs_the_logarithm_of_the_others() -> None:
    z = torch.ones(4, 3)
    assert float(simclr_loss(z, z).loss) == pytest.approx(np.log(7))


def test_does_not_depend_on_scale_rotation_order_or_which_view_is_first() -> None:
    z_a, z_b = normal(6, 3), normal(6, 3, seed=1)
    expected = float(simclr_loss(z_a, z_b).loss)
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    rows = torch.tensor([3, 1, 0, 2, 5, 4])
    assert float(simclr_loss(4 * z_a @ turn, z_b @ turn).loss) == pytest.approx(expected)
    assert float(simclr_loss(z_a[rows], z_b[rows]).loss) == pytest.approx(expected)
    assert float(simclr_loss(z_b, z_a).loss) == pytest.approx(expected)


def test_refuses_other_shapes_and_half_precision() -> None:
    z = normal(4, 3)
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[4, 2\]"):
        simclr_loss(z, z[:, :2])
    with pytest.raises(ValueError, match="expected float32"):
        simclr_loss(z.bfloat16(), z.bfloat16())
