"""The VAE's loss terms equal their integrals and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from engine.objectives.vae import kl_to_standard_normal, reconstruction_loss, reparameterise, vae_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_the_integral() -> None:
    mean, log_variance = normal(3, 2), normal(3, 2, seed=1)
    grid = np.linspace(-12, 12, 20001)
    expected = 0.0
    for mu, lv in zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True):
        log_q = -0.5 * ((grid - mu) ** 2 / np.exp(lv) + lv + np.log(2 * np.pi))
        log_p = -0.5 * (grid**2 + np.log(2 * np.pi))
        expected += np.trapezoid(np.exp(log_q) * (log_q - log_p), grid)
    assert float(kl_to_standard_normal(mean, log_variance)) == pytest.approx(expected / 3, rel=1e-9)


def test_divergence_is_zero_for_the_prior_only() -> None:
    zero = torch.zeros(4, 3, dtype=torch.float64)
    assert float(kl_to_standard_normal(zero, zero)) == 0.0
    assert float(kl_to_standard_normal(zero + 0.1, zero)) > 0.0
    assert float(kl_to_standard_normal(zero, zero + 0.1)) > 0.0


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_reconstruction_equals_the_sum_over_pixels(kind: str) -> None:
    logits, target = normal(2, 3, 4, 4), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    p, t = 1 / (1 + np.exp(-logits.numpy())), target.numpy()
    values = {"bce": -(t * np.log(p) + (1 - t) * np.log(1 - p)), "mse": (p - t) ** 2}[kind]
    expected = values.sum(axis=(1, 2, 3)).mean()
    assert float(reconstruction_loss(logits, target, kind)) == pytest.approx(float(expected), rel=1e-12)


def test_loss_weighs_the_divergence() -> None:
    logits, target = normal(2, 3, 4, 4), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    mean, log_variance = normal(2, 5), normal(2, 5, seed=1)
    terms = vae_loss(logits, target, mean, log_variance, beta=4.0)
    assert float(terms.loss) == pytest.approx(float(terms.reconstruction + 4 * terms.kl))
    plain = vae_loss(logits, target, mean, None, beta=0.0)
    assert float(plain.loss) == float(plain.reconstruction) == float(terms.reconstruction)
    assert float(plain.kl) == 0.0


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_gradient(kind: str) -> None:
    target = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    inputs = [normal(2, 1, 2, 2), normal(2, 3, seed=1), normal(2, 3, seed=2)]

    def loss(logits: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        return vae_loss(logits, target, mean, log_variance, 0.7, kind).loss

    assert torch.autograd.gradcheck(loss, [i.requires_grad_() for i in inputs])


def test_samples_have_the_mean_and_variance_of_q() -> None:
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    z = reparameterise(mean, log_variance, normal(20000, 2).float())
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(0), log_variance[0].exp(), atol=0.1, rtol=0)
    one = Normal(mean, log_variance.mul(0.5).exp())
    assert float(one.cdf(reparameterise(mean, log_variance, torch.zeros(1, 2)))[0, 0]) == 0.5


def test_does_not_depend_on_the_order_of_rows_and_halves_average() -> None:
    logits, target = normal(4, 3, 4, 4), torch.rand(4, 3, 4, 4, dtype=torch.float64)
    mean, log_variance = normal(4, 5), normal(4, 5, seed=1)

    def loss(rows: Tensor) -> float:
        return float(vae_loss(logits[rows], target[rows], mean[rows], log_variance[rows], 1.0).loss)

    whole = loss(torch.arange(4))
    assert loss(torch.tensor([2, 0, 3, 1])) == pytest.approx(whole)
    assert (loss(torch.arange(2)) + loss(torch.arange(2, 4))) / 2 == pytest.approx(whole)


def test_refuses_other_shapes_and_kinds() -> None:
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="expected equal shapes"):
        reconstruction_loss(x, x[:, :1], "bce")
    with pytest.raises(ValueError, match="got 'l1'"):
        reconstruction_loss(x, x, "l1")  # type: ignore[arg-type]
