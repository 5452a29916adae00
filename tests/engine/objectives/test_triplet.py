"""The triplet loss equals plain NumPy, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.triplet import triplet_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(anchor: Tensor, positive: Tensor, margin: float) -> tuple[float, float]:
    a, p = anchor.numpy(), positive.numpy()
    cosine = (a @ p.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(p, axis=1))
    pairs = [(1 - cosine[i, i], 1 - cosine[i, (i + 1) % len(a)]) for i in range(len(a))]
    hinge = np.mean([max(0.0, near - far + margin) for near, far in pairs])
    return float(hinge), float(np.mean([near < far for near, far in pairs]))


@pytest.mark.parametrize("margin", [0.0, 0.5, 3.0])
def test_equals_the_equation(margin: float) -> None:
    anchor, positive = normal(7, 4), normal(7, 4, seed=1)
    terms = triplet_loss(anchor, positive, margin)
    loss, ordered = reference(anchor, positive, margin)
    assert float(terms.loss) == pytest.approx(loss, rel=1e-12)
    assert float(terms.ordered) == pytest.approx(ordered)


def test_default_margin_is_the_papers() -> None:
    anchor, positive = normal(7, 4), normal(7, 4, seed=1)
    assert float(triplet_loss(anchor, positive).loss) == pytest.approx(reference(anchor, positive, 0.5)[0])


def test_gradient() -> None:
    inputs = [normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, p: triplet_loss(a, p, 1.5).loss, inputs)


def test_equal_views_of_opposite_images_cost_nothing() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(triplet_loss(z, z).loss) == 0.0
    assert float(triplet_loss(z, -z).loss) == pytest.approx(2.5)


def test_collapse_costs_the_margin() -> None:
    assert float(triplet_loss(torch.ones(3, 2), torch.ones(3, 2)).loss) == pytest.approx(0.5)


def test_does_not_depend_on_scale_rotation_or_where_the_batch_begins() -> None:
    anchor, positive = normal(6, 3), normal(6, 3, seed=1)
    expected = float(triplet_loss(anchor, positive).loss)
    turn = torch.linalg.qr(normal(3, 3, seed=2)).Q
    assert float(triplet_loss(3 * anchor @ turn, 0.1 * positive @ turn).loss) == pytest.approx(expected)
    assert float(triplet_loss(anchor.roll(2, 0), positive.roll(2, 0)).loss) == pytest.approx(expected)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[2, 4\]"):
        triplet_loss(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="at least 2 images"):
        triplet_loss(torch.ones(1, 3), torch.ones(1, 3))


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_euclidean_distance_is_that_of_the_codes_as_they_are(margin: float) -> None:
    a, p = normal(7, 4), normal(7, 4, seed=1)
    near = np.linalg.norm((a - p).numpy(), axis=1)
    far = np.linalg.norm((a - p.roll(-1, 0)).numpy(), axis=1)
    terms = triplet_loss(a, p, margin, "euclidean")
    assert float(terms.loss) == pytest.approx(np.maximum(0.0, near - far + margin).mean(), rel=1e-5)
    assert float(terms.ordered) == pytest.approx((near < far).mean())
    assert float(triplet_loss(2 * a, 2 * p, 2 * margin, "euclidean").loss) == pytest.approx(
        2 * float(terms.loss), rel=1e-5
    )
