"""LARS equals two steps written out in NumPy; its exclusions; the split into weights and vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.train.optim import LARS, split_by_dimension
from tests.engine.launches import launches


def lars_reference(p, gradients, lr, momentum, weight_decay, trust, adapt):
    running = np.zeros_like(p)
    for g in gradients:
        u = g + weight_decay * p
        if adapt:
            p_norm, u_norm = np.sqrt((p**2).sum()), np.sqrt((u**2).sum())
            u = u * (trust * p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0)
        running = momentum * running + u
        p = p - lr * running
    return p


@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("adapt", [True, False])
def test_two_steps_equal_the_definition(adapt: bool, foreach: bool | None) -> None:
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(4, 3)), rng.normal(size=(2, 3, 3, 3)), np.zeros((2, 2))]
    gradients = [[rng.normal(size=s.shape) for s in starts] for _ in range(2)]
    parameters = [nn.Parameter(torch.tensor(s)) for s in starts]
    optimizer = LARS(
        parameters, lr=0.7, momentum=0.9, weight_decay=0.01, trust=0.02, adapt=adapt, foreach=foreach
    )
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for i, p in enumerate(parameters):
        expected = lars_reference(starts[i], [g[i] for g in gradients], 0.7, 0.9, 0.01, 0.02, adapt)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_a_zero_gradient_takes_no_step_and_divides_by_nothing() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.zeros(2, 2)
    LARS([p], lr=1.0).step()
    assert torch.equal(p, torch.ones(2, 2))


def test_gradients_and_absent_gradients_are_left_alone() -> None:
    p, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    p.grad = torch.full((2, 2), 3.0)
    LARS([p, unused], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(p.grad, torch.full((2, 2), 3.0))
    assert torch.equal(unused, torch.ones(2, 2))


@pytest.mark.parametrize("adapt", [True, False])
def test_launches_for_vectors_do_not_grow_with_their_number(adapt: bool) -> None:
    """On a GPU, LARS has no launch per vector, and four per weight, which compute the weight's norms."""

    def count(num_tensors: int) -> int:
        parameters = [nn.Parameter(torch.ones(3, 2)) for _ in range(num_tensors)]
        for p in parameters:
            p.grad = torch.ones(3, 2)
        optimizer = LARS(parameters, lr=0.1, weight_decay=0.1, adapt=adapt, foreach=True)
        optimizer.step()
        found = launches(optimizer.step)
        assert found["_foreach_add_"] >= 1
        return found.total()

    assert count(24) - count(4) == (20 * 4 if adapt else 0)


def test_split_puts_biases_and_scales_apart() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    weights, vectors = split_by_dimension(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), frozen)
    assert [list(p.shape) for p in weights] == [[4, 3, 3, 3]]
    assert [list(p.shape) for p in vectors] == [[4], [4], [4]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum=1\.0"):
        LARS([nn.Parameter(torch.ones(1))], lr=0.1, momentum=1.0)
