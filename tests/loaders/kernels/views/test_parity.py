"""The kernels equal torchvision's v2 operations on the same parameters; differences are in units of 1/255."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import InterpolationMode, functional

from loaders import LoaderOptions, build_loader
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import CenterCrop, ResizedCenterCrop
from loaders.views.policy import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    RandomErasing,
    Solarize,
    ViewPolicy,
)
from tests.loaders.kernels.views.rendering import render
from tools.views.oracle import torchvision_view


def errors(image, policy, row):
    size = (np.array([image.shape[0]]), np.array([image.shape[1]]))
    parameters = draw(policy, 0, np.zeros(1, np.int64), np.array([row]), 0, *size)
    expected = 255 * torchvision_view(image, policy, parameters, 0).numpy()
    return np.abs(render(image, policy, parameters) - expected)


EDGE_CASES = {
    "one pixel": np.full((1, 1, 3), 77, np.uint8),
    "one column": np.arange(120, dtype=np.uint8).reshape(40, 1, 3),
    "one row": np.arange(150, dtype=np.uint8).reshape(1, 50, 3),
    "constant": np.full((31, 33, 3), 130, np.uint8),
    "saturated": np.where(np.indices((30, 30)).sum(0)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, 2),
    "gray": np.linspace(0, 255, 35 * 28).astype(np.uint8).reshape(35, 28, 1).repeat(3, 2),
    "long": np.random.default_rng(1).integers(0, 256, (3, 2000, 3), np.uint8),
}

BASE = presets.crop_flip(48)
# View, and mean and largest difference allowed, in units of 1/255; the table of docs/views.md repeats them.
TOLERANCES = {
    "bilinear": (BASE, 0.001, 0.05),
    "bicubic": (dataclasses.replace(BASE, interpolation="bicubic"), 0.001, 0.05),
    "brightness": (dataclasses.replace(BASE, operations=(ColorJitter(brightness=0.8),)), 0.001, 0.05),
    "contrast": (dataclasses.replace(BASE, operations=(ColorJitter(contrast=0.8),)), 0.001, 0.05),
    "saturation": (dataclasses.replace(BASE, operations=(ColorJitter(saturation=0.8),)), 0.001, 0.05),
    "hue": (dataclasses.replace(BASE, operations=(ColorJitter(hue=0.5),)), 0.01, 0.25),
    "grayscale": (dataclasses.replace(BASE, operations=(Grayscale(1.0),)), 0.001, 0.05),
    "blur 0.1": (dataclasses.replace(BASE, operations=(GaussianBlur(1.0, (0.1, 0.1)),)), 0.001, 0.05),
    "blur 2.0": (dataclasses.replace(BASE, operations=(GaussianBlur(1.0, (2.0, 2.0)),)), 0.1, 1.0),
    "erased by noise": (dataclasses.replace(BASE, operations=(RandomErasing(1.0),)), 0.001, 0.05),
    "erased by the mean": (
        dataclasses.replace(BASE, operations=(RandomErasing(1.0, fill="mean"), ColorJitter(contrast=0.8))),
        0.001,
        0.05,
    ),
    "barlow a": (presets.barlow_a(48), 0.05, 1.0),
    "barlow b": (presets.barlow_b(48), 0.05, None),  # solarize may flip a value on the threshold
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_kernels_equal_torchvision_on_photographs(name, photos):
    policy, mean, largest = TOLERANCES[name]
    found = np.stack([errors(image, policy, row) for row, image in enumerate(photos)])
    assert np.isfinite(found).all()
    assert found.mean() < mean
    assert np.quantile(found, 0.999) < 3.0
    assert largest is None or found.max() < largest


@pytest.mark.parametrize("case", EDGE_CASES)
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "contrast", "hue", "blur 2.0"])
def test_kernels_equal_torchvision_on_edge_cases(case, name):
    policy, _, _ = TOLERANCES[name]
    for row in range(4):
        found = errors(EDGE_CASES[case], policy, row)
        assert np.isfinite(found).all()
        assert np.quantile(found, 0.999) < 3.0


def test_solarize_is_exact_away_from_the_threshold(photos):
    policy = dataclasses.replace(BASE, operations=(Solarize(1.0, 128.0),))
    for row, image in enumerate(photos):
        found = errors(image, policy, row)
        assert (found < 0.05).mean() > 0.999


@pytest.mark.parametrize("resolution", [1, 2, 3, 7, 17, 96, 130, 224])
def test_every_resolution_is_written_whole(resolution, photos):
    policy = presets.barlow_a(resolution)
    found = errors(photos[0], policy, 5)
    assert found.max() < 1.5


def test_evaluation_view_equals_resize_and_centre_crop(photos):
    policy = dataclasses.replace(presets.evaluation(64), geometry=CenterCrop(0.875), normalize=None)
    image = photos[0]
    size = (np.array([image.shape[0]]), np.array([image.shape[1]]))
    parameters = draw(policy, 0, np.zeros(1, np.int64), np.array([0]), 0, *size)
    x = torch.from_numpy(image).permute(2, 0, 1).float()
    short = min(image.shape[:2])
    crop = round(short * 0.875)
    expected = functional.resize(functional.center_crop(x, [crop, crop]), [64, 64], antialias=True).numpy()
    # The two centres may be half a source pixel apart.
    assert np.abs(render(image, policy, parameters) - expected).mean() < 6.0


@pytest.mark.parametrize(("short_side", "side"), [(73, 64), (74, 64), (40, 40), (41, 17)])
def test_the_resized_centre_is_torchvisions_resize_and_centre_crop(short_side, side, photos):
    policy = ViewPolicy("stock", side, ResizedCenterCrop(short_side, rounded=False), interpolation="bicubic")
    odd = [
        np.ascontiguousarray(photo[: len(photo) - cut, : 2 * cut + 61]) for cut, photo in enumerate(photos)
    ]
    for image in (*odd, *EDGE_CASES.values()):
        size = (np.array([image.shape[0]]), np.array([image.shape[1]]))
        parameters = draw(policy, 0, np.zeros(1, np.int64), np.array([0]), 0, *size)
        x = torch.from_numpy(image).permute(2, 0, 1).float()
        x = functional.resize(x, [short_side], InterpolationMode.BICUBIC, antialias=True)
        expected = functional.center_crop(x, [side, side]).clamp(0, 255).numpy()
        assert np.abs(render(image, policy, parameters) - expected).max() < 0.05


def test_reflected_shift_equals_padding_and_cropping(photos):
    policy = presets.weak(32, flip_p=0.0)
    image = np.ascontiguousarray(photos[0][:24, :24])
    x = torch.from_numpy(image).permute(2, 0, 1).float()
    resized = functional.resize(x, [32, 32], antialias=True)
    padded = functional.pad(resized, [4, 4, 4, 4], padding_mode="reflect").numpy()
    size = (np.array([24]), np.array([24]))
    for row in range(8):
        parameters = draw(policy, 0, np.zeros(1, np.int64), np.array([row]), 0, *size)
        dy, dx = parameters.shift[0] + 4
        expected = padded[:, dy : dy + 32, dx : dx + 32]
        np.testing.assert_allclose(render(image, policy, parameters), expected, atol=0.01)


@pytest.mark.parametrize("side", [32, 37, 96])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_without_a_change_of_scale_is_exact(photos, side, flip):
    """Pixels are copied, not resampled: in whole vectors, reversed vectors, and the rest of a row."""
    policy = presets.weak(side, flip_p=flip)
    large = next(photo for photo in photos if min(photo.shape[:2]) >= 96)
    image = np.ascontiguousarray(large[:side, :side])
    mirrored = image[:, ::-1] if flip else image
    padded = np.pad(np.moveaxis(mirrored, -1, 0), ((0, 0), (15, 15), (15, 15)), mode="reflect")
    size = (np.array([side]), np.array([side]))
    for row in range(8):
        parameters = draw(policy, 0, np.zeros(1, np.int64), np.array([row]), 0, *size)
        dy, dx = parameters.shift[0] + 15
        expected = padded[:, dy : dy + side, dx : dx + side]
        np.testing.assert_array_equal(render(image, policy, parameters), expected)


def test_erasing_touches_its_box_alone_and_the_mean_is_0_once_normalised(photo_pack):
    """Tested through a loader whose views share one crop; "noise" fills with every value equally often."""
    plain, split = presets.crop_flip(96), photo_pack.split("train")
    views = [plain]
    for fill in ("mean", "noise"):
        operations = (*plain.operations, RandomErasing(1.0, fill=fill))
        views.append(dataclasses.replace(plain, operations=operations, shares_draws_of=len(views)))
    rendered = {}
    for dtype in ("float32", "uint8"):
        options = LoaderOptions(num_threads=1, dtype=dtype)
        with build_loader(split, tuple(views), len(split), options=options) as loader:
            rendered[dtype] = next(iter(loader.epoch(0))).views
    whole, mean, noise = rendered["float32"]
    box = (noise != whole).any(1)
    share = box.float().mean((1, 2))
    assert (share > 0.015).all()
    assert (share < 0.34).all()
    inside = box[:, None].expand_as(mean)
    torch.testing.assert_close(mean[~inside], whole[~inside], rtol=0, atol=0)
    assert mean[inside].abs().max() < 1e-5
    counts = np.bincount(rendered["uint8"][2][inside].numpy(), minlength=256)
    # Rounding gives the values 0 and 255 half the probability of the others.
    expected = np.r_[0.5, np.ones(254), 0.5] * counts.sum() / 255
    assert stats.chisquare(counts, expected).pvalue > 1e-3
