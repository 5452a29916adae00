"""A generative adversarial network without labels: real against generated, and the generator against both.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets" (arXiv 1406.2661), algorithm 1, with the
generator's loss of section 3 that does not saturate; Radford et al. 2015 (arXiv 1511.06434) train with it.

Shapes: B real and G generated rows of this rank. A logit says how sure it is that an image is real.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engine.objectives.precision import at_least_float32


@dataclass(frozen=True)
class DcganTerms:
    """Both losses and what they come from, scalars; means over the rank's rows.

    Attributes:
        discriminator: half the cross-entropy of "real" on real and of "generated" on generated images.
        generator: cross-entropy of "real" on generated images.
        real: mean probability that real images are real, detached.
        generated: mean probability that generated images are real, detached.
    """

    discriminator: Tensor
    generator: Tensor
    real: Tensor
    generated: Tensor

    @property
    def loss(self) -> Tensor:
        """Their sum: each network has a gradient from its own alone."""
        return self.discriminator + self.generator


def dcgan_loss(logits_real: Tensor, logits_generated: Tensor, logits_for_generator: Tensor) -> DcganTerms:
    """Compute the losses of both networks.

    Args:
        logits_real: [B].
        logits_generated: [G], of images whose generator gets no gradient from here.
        logits_for_generator: [G], of the same images by a discriminator that gets no gradient from here.
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
