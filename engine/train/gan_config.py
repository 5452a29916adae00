"""The options that recipes with a generator and a discriminator share."""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.run_config import RunConfig
from loaders.common.checks import Count, Share
from loaders.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GanConfig(RunConfig):
    """Options of every recipe with a generator; a recipe redeclares those that its paper sets."""

    compares_pixels = True
    noise_size: Count = 100
    """Size of the noise vector that an image is generated from; its values are uniform in [0, 1)."""
    generator_width: Count = 128
    """Channels of the generator at half the output resolution."""
    dropout: float = 0.5
    """Dropout in the discriminator; on its input image, 0.4 times this value."""
    lr_generator: float = 2e-4
    """Adam's learning rate for the generator."""
    beta1: Share = 0.5
    """Adam's first beta, the momentum."""
    collapse_share: float = 0.1
    """Report a collapse when generated images vary by less than this share of the variation of real ones."""

    def __post_init__(self) -> None:
        """Also refuse a backbone that is no discriminator, and values out of range."""
        super().__post_init__()
        if not self.backbone.startswith("gan_discriminator_"):
            raise UserError(f"backbone: expected gan_discriminator_<width>, found {self.backbone!r}")
        if self.beta1 >= 1.0:
            raise UserError(f"beta1: expected less than 1, found {self.beta1}; lower it")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout: expected a value in [0, 1), found {self.dropout}")
