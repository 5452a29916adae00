"""The evaluation view as data: what it shows, and that it can be read back from a file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from timm.data import create_transform

from loaders.common.errors import UserError
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from loaders.views.geometry import CenterCrop, ResizedCenterCrop
from loaders.views.policy import HorizontalFlip, Normalize

FOREIGN = EvaluationView(96, 0.95, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), "bicubic")


@pytest.mark.parametrize("resolution", [16, 127, 128, 224])
def test_the_usual_view_is_the_preset(resolution: int) -> None:
    assert EvaluationView.usual(resolution).policy() == presets.evaluation(resolution)
    assert EvaluationView.usual(resolution).policy(mirrored=True) == presets.mirrored(resolution)


def test_a_view_of_foreign_weights_keeps_their_preprocessing() -> None:
    policy = FOREIGN.at(64).policy(mirrored=True)
    assert (policy.resolution, policy.geometry, policy.interpolation) == (64, CenterCrop(0.95), "bicubic")
    assert policy.normalize == Normalize((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    assert policy.operations == (HorizontalFlip(1.0),)


@pytest.mark.parametrize(
    ("resolution", "crop", "short_side"), [(224, 0.875, 256), (224, 0.9, 248), (96, 1.0, 96)]
)
def test_whole_pixels_resize_the_short_side_as_timm_does(
    resolution: int, crop: float, short_side: int
) -> None:
    view = EvaluationView(resolution, crop, interpolation="bicubic", whole_pixels=True)
    assert view.policy().geometry == ResizedCenterCrop(short_side)
    assert view.at(32).policy().geometry == ResizedCenterCrop(math.floor(32 / crop))
    stock = create_transform((3, resolution, resolution), crop_pct=crop, interpolation="bicubic")
    assert stock.transforms[0].size == short_side


def test_a_view_from_before_whole_pixels_is_the_exact_square() -> None:
    content = asdict(FOREIGN)
    del content["whole_pixels"]
    assert EvaluationView.parse(content).policy().geometry == CenterCrop(0.95)


@pytest.mark.parametrize(
    "view", [FOREIGN, EvaluationView.usual(224), EvaluationView(7, 1 / 3, whole_pixels=True)]
)
def test_a_view_comes_back_from_json(view: EvaluationView) -> None:
    assert EvaluationView.parse(json.loads(json.dumps(asdict(view)))) == view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0.0}, "CenterCrop fraction: expected a number"),
        ({"std": [1.0, 1.0]}, "Normalize std: expected three numbers"),
        ({"interpolation": "lanczos"}, "interpolation of view .* expected 'bilinear' or 'bicubic'"),
        ({"resolution": "16"}, "resolution of view"),
        ({"colours": 3}, r"unexpected keyword argument 'colours'\); use the file as the run"),
    ],
)
def test_fields_that_make_no_view_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationView.parse({**asdict(FOREIGN), **change})
