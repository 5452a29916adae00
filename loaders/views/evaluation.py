"""The view with which a network is evaluated or predicts; it is stored with the network's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from loaders.common.checks import Range
from loaders.common.errors import UserError
from loaders.views import presets
from loaders.views.geometry import MAX_RESOLUTION, CenterCrop, ResizedCenterCrop
from loaders.views.policy import IMAGENET, Interpolation, Normalize, ViewPolicy

Channels = tuple[float, float, float]
Side = Annotated[int, Range(most=MAX_RESOLUTION)]
"""Side of a view, pixels."""


@dataclass(frozen=True)
class EvaluationView:
    """A deterministic view: one centred square of every image.

    Attributes:
        resolution: side in pixels.
        crop: share of the short side that is kept, in (0, 1]; timm calls it crop_pct.
        mean: mean to subtract from each channel, whose values are in [0, 1].
        std: standard deviation by which each channel is then divided.
        interpolation: filter of the antialiased resize.
        whole_pixels: True resizes the short side to floor(resolution / crop), rounded as in Pillow, and crops
            at whole pixels, as timm and torchvision do for their networks. False takes the exact centred
            square, as this project does for its own networks.
    """

    resolution: int
    crop: float
    mean: Channels = IMAGENET.mean
    std: Channels = IMAGENET.std
    interpolation: Interpolation = "bilinear"
    whole_pixels: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no valid policy."""
        self.policy()

    @classmethod
    def usual(cls, resolution: int) -> EvaluationView:
        """Return the view of this project's own networks, as in `presets.evaluation`."""
        geometry = presets.evaluation(resolution).geometry
        assert isinstance(geometry, CenterCrop)
        return cls(resolution, geometry.fraction)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> EvaluationView:
        """Rebuild a view from its `dataclasses.asdict`, after a round trip through JSON.

        Raises:
            UserError: the fields make no valid view.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(
                f"evaluation view: expected the fields that a run wrote, found others ({error}); use the "
                "file as the run wrote it"
            ) from None

    def at(self, resolution: int) -> EvaluationView:
        """Return the same view at another resolution."""
        return replace(self, resolution=resolution)

    def policy(self, mirrored: bool = False) -> ViewPolicy:
        """Return the view as a policy for a loader, mirrored left to right if wanted."""
        preset = presets.mirrored if mirrored else presets.evaluation
        policy = preset(self.resolution, self.crop, Normalize(self.mean, self.std))
        if self.whole_pixels:
            short_side = math.floor(self.resolution / self.crop)
            policy = replace(policy, geometry=ResizedCenterCrop(short_side))
        return replace(policy, interpolation=self.interpolation)

    def fit(self, views: tuple[ViewPolicy, ...]) -> tuple[ViewPolicy, ...]:
        """Return training views with the mean, deviation and filter of this view.

        Views that are not normalised by ImageNet's values keep what their recipe chose. So do all views if
        this view has ImageNet's values and bilinear interpolation.
        """
        own = Normalize(self.mean, self.std)
        if (own, self.interpolation) == (IMAGENET, "bilinear"):
            return views
        return tuple(
            replace(view, normalize=own, interpolation=self.interpolation)
            if view.normalize == IMAGENET
            else view
            for view in views
        )
