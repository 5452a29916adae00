"""Semi-supervised GAN: a classifier of K classes that also tells generated images from real ones.

The class "generated" needs no output of its own: its logit is fixed at 0, so that an image is real with
probability Z / (Z + 1), where Z is the sum of exp(logits) over the K classes.

Source: Salimans et al. 2016, "Improved Techniques for Training GANs" (arXiv 1606.03498), sections 3.1 and 5.

Shapes: B labelled, M unlabelled and G generated rows of this rank, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.objectives.cross_entropy import label_loss
from engine.objectives.precision import at_least_float32
from engine.train.distributed import all_reduce_sum, world_size


@dataclass(frozen=True)
class DiscriminatorTerms:
    """The loss of the classifier and its parts, scalars averaged over the rank's rows.

    Attributes:
        loss: supervised + unsupervised.
        supervised: cross-entropy over the K classes.
        unsupervised: mean of two cross-entropies: unlabelled images against "real", generated ones against
            "generated".
        real: mean probability of "real" for unlabelled images, detached.
        generated: mean probability of "real" for generated images, detached.
    """

    loss: Tensor
    supervised: Tensor
    unsupervised: Tensor
    real: Tensor
    generated: Tensor


def discriminator_loss(
    logits_labeled: Tensor,
    labels: Tensor,
    logits_unlabeled: Tensor,
    logits_generated: Tensor,
    class_weights: Tensor | None = None,
) -> DiscriminatorTerms:
    """Compute the loss over K classes and the class "generated".

    Args:
        logits_labeled: [B, K].
        labels: int64 [B], or shares of the classes, see `label_loss`.
        logits_unlabeled: [M, K].
        logits_generated: [G, K], of generated images that are detached from the generator.
        class_weights: weight of each of the K classes, see `label_loss`.
    """
    supervised = label_loss(logits_labeled, labels, class_weights)
    z_real = at_least_float32(logits_unlabeled).logsumexp(1)
    z_generated = at_least_float32(logits_generated).logsumexp(1)
    # -log(Z / (Z + 1)) = softplus(z) - z and -log(1 / (Z + 1)) = softplus(z), with z = log Z
    on_real = (F.softplus(z_real) - z_real).mean()
    on_generated = F.softplus(z_generated).mean()
    unsupervised = 0.5 * on_real + 0.5 * on_generated
    return DiscriminatorTerms(
        supervised + unsupervised,
        supervised,
        unsupervised,
        z_real.detach().sigmoid().mean(),
        z_generated.detach().sigmoid().mean(),
    )


def feature_matching_loss(features_real: Tensor, features_generated: Tensor) -> Tensor:
    """Return the mean absolute difference of the mean features of real and of generated images.

    The mean features are over the rows of all ranks, so every rank computes the same loss.

    Args:
        features_real: [M, D], of the layer before the classifier; no gradient flows back.
        features_generated: [G, D].

    Source: section 3.1, with the absolute difference of the authors' code.
    """
    real, generated = at_least_float32(features_real.detach()), at_least_float32(features_generated)
    mean_real = all_reduce_sum(real.mean(0)) / world_size()
    mean_generated = all_reduce_sum(generated.mean(0)) / world_size()
    return (mean_real - mean_generated).abs().mean()


@torch.no_grad()
def diversity(images: Tensor) -> Tensor:
    """Return the root mean square difference of images [G, 3, H, W] from their mean over all ranks, a scalar.

    The value is close to 0 if the generator makes the same image from every input.
    """
    mean = all_reduce_sum(images.mean(0)) / world_size()
    square = all_reduce_sum((images - mean).square().mean()) / world_size()
    return square.sqrt()
