"""RandAugment's operations and the other warps equal torchvision's, on views that need no resampling."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from loaders.kernels.views import codes
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import CenterCrop
from loaders.views.policy import Augment, Cutout, RandAugment, RandomAffine, ViewPolicy
from tests.loaders.kernels.views.rendering import render

SIDE = 48
NEAREST = InterpolationMode.NEAREST


def affine(x, **options):
    base = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": NEAREST}
    return functional.affine(x, **(base | options))


def shear(x, horizontal, vertical):
    degrees = [math.degrees(math.atan(horizontal)), math.degrees(math.atan(vertical))]
    return affine(x, shear=degrees, center=[0, 0])


# Argument, torchvision's result on uint8, largest difference, and share of pixels that may differ by more.
CASES = {
    "autocontrast": (0.0, lambda x, v: functional.autocontrast(x), 1.0, 0.0),
    "brightness": (0.4, functional.adjust_brightness, 1.0, 0.0),
    "color": (0.3, functional.adjust_saturation, 2.0, 0.0),
    "contrast": (0.6, functional.adjust_contrast, 1.5, 0.0),
    "equalize": (0.0, lambda x, v: functional.equalize(x), 0.0, 0.0),
    "identity": (0.0, lambda x, v: x, 0.0, 0.0),
    "invert": (0.0, lambda x, v: functional.invert(x), 0.0, 0.0),
    "posterize": (5.0, lambda x, v: functional.posterize(x, int(v)), 0.0, 0.0),
    "rotate": (27.0, lambda x, v: functional.rotate(x, v, interpolation=NEAREST), 0.0, 0.01),
    "sharpness": (0.3, functional.adjust_sharpness, 1.5, 0.0),
    "shear_x": (0.27, lambda x, v: shear(x, v, 0.0), 0.0, 0.01),
    "shear_y": (-0.13, lambda x, v: shear(x, 0.0, v), 0.0, 0.01),
    "solarize": (101.0, functional.solarize, 0.0, 0.0),
    "translate_x": (0.3, lambda x, v: affine(x, translate=[-int(v * SIDE), 0]), 0.0, 0.0),
    "translate_y": (-0.2, lambda x, v: affine(x, translate=[0, -int(v * SIDE)]), 0.0, 0.0),
}


def squares(photos):
    found = [np.ascontiguousarray(p[:SIDE, :SIDE]) for p in photos if min(p.shape[:2]) >= SIDE]
    found.append(np.full((SIDE, SIDE, 3), 130, np.uint8))
    found.append(
        np.where(np.indices((SIDE, SIDE)).sum(0)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, 2)
    )
    return found


def policy_of(*operations):
    return ViewPolicy("test", SIDE, CenterCrop(1.0), operations)


def parameters_of(policy, row=0):
    side = np.array([SIDE])
    return draw(policy, 0, np.zeros(1, np.int64), np.array([row]), 0, side, side)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_equals_torchvisions(name, photos):
    value, oracle, largest, share = CASES[name]
    policy = policy_of(RandAugment((Augment(name, value, value),), num_ops=1, p=1.0))
    for image in squares(photos):
        expected = oracle(torch.from_numpy(image).permute(2, 0, 1), value).float().numpy()
        error = np.abs(render(image, policy, parameters_of(policy)) - expected)
        assert (error > largest + 1e-3).mean() <= share


def test_affine_equals_rotation_then_translation(photos):
    policy = policy_of(RandomAffine(degrees=30.0, translate=0.2))
    image = squares(photos)[0]
    x = torch.from_numpy(image).permute(2, 0, 1)
    for row in range(6):
        p = parameters_of(policy, row)
        a, b, c, d, e, f, _ = p.args[0].astype(np.float64)
        angle = math.degrees(math.atan2(d, a))
        shift = [-(a * c + d * f), -(b * c + e * f)]
        expected = affine(x, angle=-angle, translate=shift).float().numpy()
        flipped = affine(x, angle=angle, translate=shift).float().numpy()
        found = render(image, policy, p)
        assert min((found != expected).mean(), (found != flipped).mean()) < 0.02


def test_operations_that_need_the_whole_view_may_follow_each_other(photos):
    names = ("contrast", "contrast", "autocontrast", "equalize", "sharpness", "rotate", "posterize")
    values = {"contrast": 0.5, "sharpness": 0.4, "rotate": 20.0, "posterize": 6.0}
    operations = tuple(RandAugment((Augment(n, values.get(n, 0), values.get(n, 0)),), 1, 1.0) for n in names)
    policy = policy_of(*operations)
    image = squares(photos)[0]
    x = torch.from_numpy(image).permute(2, 0, 1)
    for name in names:
        x = CASES[name][1](x, values.get(name, 0.0))
    error = np.abs(render(image, policy, parameters_of(policy)) - x.float().numpy())
    assert np.median(error) <= 4.0  # torchvision rounds to uint8 after every operation
    assert (error > 16).mean() < 0.05


def test_cutout_fills_a_square_and_nothing_else(photos):
    policy = policy_of(Cutout((0.5, 0.5), fill=127.0))
    image = squares(photos)[0]
    plain = np.moveaxis(image, -1, 0).astype(np.float32)
    areas = []
    for row in range(60):
        p = parameters_of(policy, row)
        top, left, bottom, right = p.args[0, :4].astype(int)
        expected = plain.copy()
        expected[:, top:bottom, left:right] = 127.0
        np.testing.assert_allclose(render(image, policy, p), expected, atol=1e-3)
        areas.append((bottom - top) * (right - left))
    assert max(areas) == (SIDE // 2) ** 2
    assert min(areas) < (SIDE // 2) ** 2  # the border cuts off some boxes


def test_randaugment_draws_every_operation_equally_often():
    policy = presets.fixmatch_strong(SIDE)
    num = 20_000
    sides = np.full(num, SIDE)
    drawn = draw(policy, 0, np.zeros(num, np.int64), np.arange(num), 0, sides, sides)
    blocks = drawn.codes[:, : 2 * codes.MAX_ARGUMENTS].reshape(num * 2, codes.MAX_ARGUMENTS)[:, 0]
    counts = {code: int((blocks == code).sum()) for code in np.unique(blocks)}
    expected = num * 2 * 0.5 / 14
    for code, times in {codes.AFFINE: 5, codes.BRIGHTNESS: 1, codes.EQUALIZE: 1, codes.POSTERIZE: 1}.items():
        assert abs(counts[code] - times * expected) < 5 * math.sqrt(times * expected)
    factors = drawn.args[:, 0][drawn.codes[:, 0] == codes.BRIGHTNESS]
    np.testing.assert_allclose(
        np.unique(factors.round(3)), (0.05 + 0.09 * np.arange(1, 10)).round(3), atol=1e-3
    )
    bits = drawn.args[:, 0][drawn.codes[:, 0] == codes.POSTERIZE]
    assert set(bits) == {4.0, 5.0, 6.0, 7.0}
