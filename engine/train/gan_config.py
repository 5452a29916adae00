"""The fields of recipes in which a discriminator learns from a generator."""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.run_config import RunConfig
from loaders.common.checks import Count, Share
from loaders.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GanConfig(RunConfig):
    """Fields of every recipe with a generator; a recipe names again those its paper sets."""

    compares_pixels = True
    noise_size: Count = 100
    """Numbers that an image is generated from, drawn uniformly from [0, 1)."""
    generator_width: Count = 128
    """Channels at half the resolution."""
    dropout: float = 0.5
    """Dropout in the discriminator; 0.4 of it on the image."""
    lr_generator: float = 2e-4
    """Learning rate of Adam, for the generator."""
    beta1: Share = 0.5
    """First beta, the momentum, of Adam."""
    collapse_share: float = 0.1
    """Say that the generator has collapsed when its images vary less than this share of the real ones."""

    def __post_init__(self) -> None:
        """Refuse what has no discriminator."""
        super().__post_init__()
        if not self.backbone.startswith("gan_discriminator_"):
            raise UserError(f"backbone: expected gan_discriminator_<width>, found {self.backbone!r}")
        if self.beta1 >= 1.0:
            raise UserError(f"beta1: expected less than 1, found {self.beta1}; lower it")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout: expected a value in [0, 1), found {self.dropout}")
