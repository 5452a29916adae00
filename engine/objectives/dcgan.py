"""A generative adversarial network without labels: the losses of the discriminator and the generator.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv 1406.2661), equation 1 (halved), with the
non-saturating generator loss of section 3, which Radford et al. 2015 (arXiv 1511.06434) use too.

Shapes: B real and G generated rows of this rank. A logit is the log-odds that an image is real.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engine.objectives.precision import at_least_float32


@dataclass(frozen=True)
class DcganTerms:
    """Both losses and the discriminator's mean outputs, scalars averaged over the rank's rows.

    Attributes:
        discriminator: mean of two cross-entropies: real images against "real", generated ones against
            "generated".
        generator: cross-entropy of generated images against "real".
        real: mean probability of "real" for real images, detached.
        generated: mean probability of "real" for generated images, detached.
    """

    discriminator: Tensor
    generator: Tensor
    real: Tensor
    generated: Tensor

    @property
    def loss(self) -> Tensor:
        """The sum of both losses; each network gets a gradient only from its own loss."""
        return self.discriminator + self.generator


def dcgan_loss(logits_real: Tensor, logits_generated: Tensor, logits_for_generator: Tensor) -> DcganTerms:
    """Compute the losses of both networks.

    Args:
        logits_real: [B].
        logits_generated: [G], of generated images that are detached from the generator.
        logits_for_generator: [G], of the same images with their gradient, from a frozen discriminator.
    """
    real, generated, rival = (
        at_least_float32(logits) for logits in (logits_real, logits_generated, logits_for_generator)
    )
    discriminator = 0.5 * F.softplus(-real).mean() + 0.5 * F.softplus(generated).mean()
    return DcganTerms(
        discriminator,
        F.softplus(-rival).mean(),
        real.detach().sigmoid().mean(),
        generated.detach().sigmoid().mean(),
    )
