"""Muon against its definition: what orthogonalising does, two steps written out, and AdamW for the rest."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from engine.train.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = np.geomspace(0.1, 30.0, len(vt))
    found = orthogonal(torch.tensor((u * values) @ vt)).numpy()
    turned = u.T @ found @ vt.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-6)
    assert 0.3 < np.diag(turned).min() <= np.diag(turned).max() < 1.3
    assert np.diag(turned)[values > 1.0].min() > 0.65


def test_zeros_stay() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_two_steps_equal_the_definition() -> None:
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(4, 3)), rng.normal(size=(2, 3, 3, 3))]
    gradients = [[rng.normal(size=start.shape) for start in starts] for _ in range(2)]
    parameters = [nn.Parameter(torch.tensor(start)) for start in starts]
    parameters[1].data = parameters[1].data.to(memory_format=torch.channels_last)
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([*parameters, unused], lr=0.1, momentum=0.9, weight_decay=0.5)
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for i, start in enumerate(starts):
        expected, running = start.reshape(len(start), -1), 0.0
        for step in gradients:
            g = step[i].reshape(expected.shape)
            running = 0.9 * running + g
            update = orthogonal(torch.tensor(g + 0.9 * running)).numpy()
            expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(max(expected.shape)) * update
        np.testing.assert_allclose(
            parameters[i].detach().numpy().reshape(expected.shape), expected, rtol=1e-12
        )
    assert torch.equal(unused, torch.ones(2, 2))


def test_a_step_has_the_size_of_a_step_of_adamw() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(64, 32, 3, 3))
    p.grad = 1e-4 * torch.randn_like(p)
    Muon([p], lr=1.0).step()
    assert 0.15 < p.square().mean().sqrt() < 0.25


def test_the_rest_is_moved_by_adamw() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1.0, 1.0, 5)) for _ in range(2))
    optimizers = (
        Muon([{"params": [ours], "orthogonal": False, "weight_decay": 0.1}], lr=0.01),
        torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    )
    for step in range(3):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = torch.arange(5.0) - step
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_it_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def made() -> Muon:
        weights, vectors = [m.weight for m in network], [m.bias for m in network]  # type: ignore[union-attr]
        return Muon([{"params": weights}, {"params": vectors, "orthogonal": False}], lr=0.1)

    def step(optimizer: Muon, number: int) -> None:
        optimizer.zero_grad()
        network(torch.full((2, 3), float(number))).square().mean().backward()
        optimizer.step()

    first = made()
    step(first, 1)
    kept, state = (
        {name: value.clone() for name, value in network.state_dict().items()},
        deepcopy(first.state_dict()),
    )
    second = made()
    second.load_state_dict(state)
    step(first, 2)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    step(second, 2)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="Muon: expected lr >= 0"):
        Muon([nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"at least two dimensions of what is orthogonalised, got \[3\]"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)
