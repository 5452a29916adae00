"""Variational autoencoder: reconstruct an image from a noisy code whose distribution is near standard normal.

Source: Kingma, Welling 2014, "Auto-Encoding Variational Bayes", equations 7 and 10 and appendix B; Higgins et
al. 2017, "beta-VAE", for the factor beta.

Shapes: B rows of this rank, D latent, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.choices import Reconstruction


@dataclass(frozen=True)
class VaeTerms:
    """The loss and its two parts, scalars averaged over the rank's rows.

    Attributes:
        loss: reconstruction + beta * kl.
        reconstruction: reconstruction error, summed over pixels and channels.
        kl: divergence from the standard normal, summed over the latent, without beta; 0 in the plain
            autoencoder.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def reparameterise(mean_BD: Tensor, log_variance_BD: Tensor, noise_BD: Tensor) -> Tensor:
    """Turn standard normal noise [B, D] into a sample of q(z | x): mean + standard deviation * noise."""
    return mean_BD + torch.exp(0.5 * log_variance_BD) * noise_BD


def kl_to_standard_normal(mean_BD: Tensor, log_variance_BD: Tensor) -> Tensor:
    """Return KL(q(z | x) || N(0, 1)), summed over the latent, averaged over rows (paper, appendix B)."""
    terms = 1.0 + log_variance_BD - mean_BD.square() - log_variance_BD.exp()
    return -0.5 * terms.sum(1).mean()


def reconstruction_loss(logits: Tensor, target: Tensor, kind: Reconstruction) -> Tensor:
    """Return the reconstruction error, summed over pixels and channels, averaged over rows.

    Args:
        logits: [B, 3, H, W], float32 or wider; their sigmoid is the reconstructed intensity.
        target: [B, 3, H, W], intensities in [0, 1].
        kind: "bce", the cross-entropy of Bernoulli intensities, or "mse", the squared error.

    Raises:
        ValueError: shapes differ, or the kind is unknown.
    """
    if logits.shape != target.shape:
        raise ValueError(f"VAE: expected equal shapes, got {list(logits.shape)} and {list(target.shape)}")
    if kind == "bce":
        per_value = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    elif kind == "mse":
        per_value = (torch.sigmoid(logits) - target).square()
    else:
        raise ValueError(f"VAE: expected reconstruction 'bce' or 'mse', got {kind!r}")
    return per_value.flatten(1).sum(1).mean()


def vae_loss(
    logits: Tensor,
    target: Tensor,
    mean_BD: Tensor,
    log_variance_BD: Tensor | None,
    beta: float,
    kind: Reconstruction = "bce",
) -> VaeTerms:
    """Compute reconstruction + beta * divergence: with "bce" and beta = 1, the negative evidence lower bound.

    Args:
        logits: [B, 3, H, W], decoded from a sample of q(z | x), or from the plain autoencoder's code.
        target: [B, 3, H, W], in [0, 1].
        mean_BD: [B, D], mean of q(z | x); the code itself in the plain autoencoder.
        log_variance_BD: [B, D]; None in the plain autoencoder, whose code has no variance.
        beta: weight of the divergence; 1 in the paper.
        kind: see `reconstruction_loss`.
    """
    reconstruction = reconstruction_loss(logits, target, kind)
    if log_variance_BD is None:
        return VaeTerms(reconstruction, reconstruction, torch.zeros_like(reconstruction))
    kl = kl_to_standard_normal(mean_BD, log_variance_BD)
    return VaeTerms(reconstruction + beta * kl, reconstruction, kl)
