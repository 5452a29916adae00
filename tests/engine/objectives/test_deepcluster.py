"""The weighted loss equals the loss of uniform sampling over clusters, and has the right invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.objectives.deepcluster import cluster_weights, deepcluster_loss

ASSIGNMENT = torch.tensor([0, 0, 0, 0, 0, 2, 2, 3])
NUM_CLUSTERS = 5


def logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(ASSIGNMENT), NUM_CLUSTERS, dtype=torch.float64, generator=generator)


def weights() -> Tensor:
    return cluster_weights(ASSIGNMENT, NUM_CLUSTERS).double()


def test_equals_the_mean_over_clusters_of_the_mean_over_their_images() -> None:
    z, y = logits().numpy(), ASSIGNMENT.numpy()
    cross_entropy = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    expected = np.mean([cross_entropy[y == cluster].mean() for cluster in (0, 2, 3)])
    terms = deepcluster_loss(logits(), ASSIGNMENT, weights())
    assert float(terms.loss) == pytest.approx(float(expected), rel=1e-7)
    assert float(terms.top1) == pytest.approx(float((z.argmax(1) == y).mean()))


def test_weights_average_to_one_and_leave_empty_clusters_out() -> None:
    w = cluster_weights(ASSIGNMENT, NUM_CLUSTERS)
    torch.testing.assert_close(w, torch.tensor([8 / 15, 0, 8 / 6, 8 / 3, 0]))
    assert float(w[ASSIGNMENT].mean()) == pytest.approx(1.0)


def test_gradient() -> None:
    w = weights()
    assert torch.autograd.gradcheck(
        lambda z: deepcluster_loss(z, ASSIGNMENT, w).loss, (logits().requires_grad_(),)
    )


def test_does_not_depend_on_the_order_of_images_or_names_of_clusters() -> None:
    expected = float(deepcluster_loss(logits(), ASSIGNMENT, weights()).loss)
    rows, names = torch.randperm(len(ASSIGNMENT)), torch.randperm(NUM_CLUSTERS)
    assert float(deepcluster_loss(logits()[rows], ASSIGNMENT[rows], weights()).loss) == pytest.approx(
        expected
    )
    renamed = deepcluster_loss(logits()[:, names], torch.argsort(names)[ASSIGNMENT], weights()[names])
    assert float(renamed.loss) == pytest.approx(expected)


def test_mean_of_two_halves_is_the_whole() -> None:
    halves = [
        deepcluster_loss(logits()[rows], ASSIGNMENT[rows], weights()).loss
        for rows in (slice(0, 4), slice(4, 8))
    ]
    whole = deepcluster_loss(logits(), ASSIGNMENT, weights()).loss
    assert float(sum(halves)) / 2 == pytest.approx(float(whole))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \[8, 5\], \[7\] and \[5\]"):
        deepcluster_loss(logits(), ASSIGNMENT[1:], weights())
