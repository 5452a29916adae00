"""DCGAN's losses of discriminator and generator equal plain references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine.objectives.dcgan import dcgan_loss


def logits(seed: int, size: int) -> torch.Tensor:
    return 3 * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_losses_are_cross_entropies() -> None:
    real, generated = logits(0, 5), logits(1, 7)
    terms = dcgan_loss(real, generated, generated)
    on_real = F.binary_cross_entropy_with_logits(real, torch.ones(5).double())
    on_generated = F.binary_cross_entropy_with_logits(generated, torch.zeros(7).double())
    assert float(terms.discriminator) == pytest.approx(float(on_real + on_generated) / 2, rel=1e-12)
    taken_for_real = F.binary_cross_entropy_with_logits(generated, torch.ones(7).double())
    assert float(terms.generator) == pytest.approx(float(taken_for_real), rel=1e-12)
    assert float(terms.real) == pytest.approx(float(torch.sigmoid(real).mean()), rel=1e-12)
    assert float(terms.loss) == pytest.approx(float(terms.discriminator + terms.generator), rel=1e-12)


def test_the_generator_learns_most_where_it_is_found_out() -> None:
    """The non-saturating loss has a gradient of -1 per row at a logit far below 0, and of 0 far above 0."""
    rival = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    dcgan_loss(logits(0, 3), logits(1, 3), rival).generator.backward()
    assert rival.grad is not None
    assert (3 * rival.grad).tolist() == pytest.approx([-1.0, -0.5, 0.0], abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    terms = dcgan_loss(*(torch.tensor([-1e4, 1e4]) for _ in range(3)))
    assert torch.isfinite(terms.loss)
