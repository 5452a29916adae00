"""The view with which a network is measured or predicts; it is kept with the network's weights."""

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
"""The side of views in pixels."""


@dataclass(frozen=True)
class EvaluationView:
    """A deterministic view: one centred square of every image.

    Attributes:
        resolution: side in pixels.
        crop: share of the short side that is kept, in (0, 1]; timm calls it crop_pct.
        mean: mean of each channel in [0, 1], which is subtracted.
        std: deviation of each channel, by which values are divided.
        interpolation: filter of the antialiased resize.
        whole_pixels: resize to floor(resolution / crop) in Pillow's bytes and cut at whole pixels, as timm
            and torchvision show images to their networks; else the exact centred square, as networks are
            shown images here.
    """

    resolution: int
    crop: float
    mean: Channels = IMAGENET.mean
    std: Channels = IMAGENET.std
    interpolation: Interpolation = "bilinear"
    whole_pixels: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no view."""
        self.policy()

    @classmethod
    def usual(cls, resolution: int) -> EvaluationView:
        """Return the view of a network that was trained here, as in `presets.evaluation`."""
        geometry = presets.evaluation(resolution).geometry
        assert isinstance(geometry, CenterCrop)
        return cls(resolution, geometry.fraction)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> EvaluationView:
        """Rebuild a view from `dataclasses.asdict`, by way of JSON.

        Raises:
            UserError: the fields make no view.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(f"evaluation view: {error}; expected what a run wrote") from None

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

        Views that are not normalised by ImageNet's values keep their own, which their recipe chose.
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
