"""Views that share a crop: the rotations of RotNet and the tiles of jigsaw puzzles."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from loaders.common.errors import UserError
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import CenterCrop, Tile
from loaders.views.policy import Standardize, ViewPolicy
from tests.loaders.kernels.views.rendering import render

ZERO = np.zeros(1, np.int64)


def drawn(image, policy, view, row=3):
    size = (np.array([image.shape[0]]), np.array([image.shape[1]]))
    return draw(policy, 0, ZERO, np.array([row]), view, *size)


@pytest.mark.parametrize("resolution", [31, 48])
def test_rotations_are_exact_turns_of_one_crop(photos, resolution):
    for row, image in enumerate(photos):
        views = [
            render(image, policy, drawn(image, policy, 5 + turns, row))
            for turns, policy in enumerate(presets.rotations(resolution))
        ]
        for turns, view in enumerate(views):
            assert np.array_equal(view, np.rot90(views[0], turns, (1, 2)))


def test_tiles_are_cut_out_of_the_resized_crop(photos):
    image = photos[0]
    for number, policy in enumerate(presets.tiles(16, 20, gray_p=0.0)):
        policy = dataclasses.replace(policy, normalize=None)
        p = drawn(image, policy, number)
        top, left, bottom, right = (int(value) for value in p.window[0])
        x = torch.from_numpy(image).permute(2, 0, 1).float()
        whole = functional.resized_crop(
            x, top, left, bottom - top, right - left, [60, 60], antialias=True
        ).numpy()
        y, x = ((p.box[0, axis] - start) / p.box[0, 2 + axis] * 16 for axis, start in enumerate((top, left)))
        assert y == pytest.approx(round(y), abs=1e-9)
        assert 20 * (number // 3) <= round(y) <= 20 * (number // 3) + 4
        assert 20 * (number % 3) <= round(x) <= 20 * (number % 3) + 4
        expected = whole[:, round(y) : round(y) + 16, round(x) : round(x) + 16]
        assert np.abs(render(image, policy, p) - expected).max() < 0.05


def test_tiles_share_their_crop_and_their_gray_but_not_their_places(photos):
    image = photos[0]
    parameters = [
        [drawn(image, policy, number, row) for number, policy in enumerate(presets.tiles(16, 20, gray_p=0.5))]
        for row in range(40)
    ]
    places = np.array([[p.box[0, :2] % (p.box[0, 2:] / 16 * 20) for p in tiles] for tiles in parameters])
    assert all(len({tuple(p.window[0]) for p in tiles}) == 1 for tiles in parameters)
    grays = np.array([[p.codes[0, 0] for p in tiles] for tiles in parameters])
    assert (grays == grays[:, :1]).all()
    assert 10 < (grays[:, 0] > 0).sum() < 30
    assert np.unique(places.round(6), axis=1).shape[1] > 5


def test_every_place_of_a_cell_is_taken():
    policy = presets.tiles(4, 6, min_scale=1.0)[4]
    rows = np.arange(2000)
    square = np.full(2000, 18)
    policy = dataclasses.replace(
        policy, geometry=dataclasses.replace(policy.geometry, crop=presets.RandomResizedCrop((1, 1), (1, 1)))
    )
    p = draw(policy, 0, np.zeros(2000, np.int64), rows, 4, square, square)
    places, counts = np.unique(p.box[:, :2], axis=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in (6, 7, 8) for x in (6, 7, 8)]
    assert counts.min() > 150


@pytest.mark.parametrize("value", [None, 77])
def test_standardize(photos, value):
    image = photos[1] if value is None else np.full((40, 40, 3), value, np.uint8)
    plain = ViewPolicy("plain", 37, CenterCrop(1.0))
    p = drawn(image, plain, 0)
    x = render(image, plain, p).astype(np.float64) / 255
    policy = dataclasses.replace(plain, normalize=Standardize(eps=1e-3))
    found = render(image, policy, drawn(image, policy, 0))
    expected = (x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 1e-3)
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tile(3, 0),
        lambda: Tile(0, -1),
        lambda: Standardize(0.0),
        lambda: presets.tiles(64, 60),
        lambda: presets.QuarterTurn(4),
    ],
)
def test_impossible_policies_are_refused(make):
    with pytest.raises(UserError, match="expected"):
        make()
