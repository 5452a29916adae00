"""The evaluation view as data: what it shows, and how it comes back from a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from loaders.common.errors import UserError
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import CenterCrop, HorizontalFlip, Normalize

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


@pytest.mark.parametrize("view", [FOREIGN, EvaluationView.usual(224), EvaluationView(7, 1 / 3)])
def test_a_view_comes_back_from_json(view: EvaluationView) -> None:
    assert EvaluationView.parse(json.loads(json.dumps(asdict(view)))) == view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0.0}, "CenterCrop fraction: expected a number"),
        ({"std": [1.0, 1.0]}, "Normalize std: expected three numbers"),
        ({"interpolation": "lanczos"}, "interpolation of view .* expected 'bilinear' or 'bicubic'"),
        ({"resolution": "16"}, "resolution of view"),
        ({"colours": 3}, "unexpected keyword argument 'colours'; expected what a run wrote"),
    ],
)
def test_fields_that_make_no_view_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationView.parse({**asdict(FOREIGN), **change})
