"""Views that are resized with rounding to whole bytes equal Pillow's."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from loaders.views.draw import draw
from loaders.views.geometry import ResizedCenterCrop
from loaders.views.policy import HorizontalFlip, ViewPolicy
from tests.loaders.kernels.views.rendering import render
from tests.loaders.kernels.views.test_parity import EDGE_CASES
from tools.views.oracle import torchvision_view


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("short_side", "side"), [(73, 64), (40, 40), (41, 17), (150, 120), (20, 20)])
def test_a_rounded_view_is_pillows_to_the_last_bit(short_side, side, filter_, photos):
    """The usual evaluation of timm and torchvision: the whole image resized by Pillow, cropped, and mirrored.

    If an image is more than twice as high as wide, Pillow 13 resizes columns first, unlike earlier versions.
    So the test resizes such an image in two calls.
    """
    plain = ViewPolicy("stock", side, ResizedCenterCrop(short_side), interpolation=filter_)
    mirrored = dataclasses.replace(plain, operations=(HorizontalFlip(1.0),))
    odd = [
        np.ascontiguousarray(photo[: len(photo) - cut, : 2 * cut + 61]) for cut, photo in enumerate(photos)
    ]
    for image in (*odd, *EDGE_CASES.values()):
        size = (np.array([image.shape[0]]), np.array([image.shape[1]]))
        mode, by_pil = InterpolationMode[filter_.upper()], Image.fromarray(image)
        if by_pil.height > 2 * by_pil.width:
            by_pil = functional.resize(by_pil, [by_pil.height, short_side], mode)
            size_by_pil = [short_side * image.shape[0] // image.shape[1], short_side]
            by_pil = functional.resize(by_pil, size_by_pil, mode)
        else:
            by_pil = functional.resize(by_pil, [short_side], mode)
        expected = np.moveaxis(np.array(functional.center_crop(by_pil, [side, side])), -1, 0)
        for policy, wanted in ((plain, expected), (mirrored, expected[:, :, ::-1])):
            drawn = draw(policy, 0, np.zeros(1, np.int64), np.array([0]), 0, *size)
            np.testing.assert_array_equal(render(image, policy, drawn), wanted)
            oracle = 255 * torchvision_view(image, policy, drawn, 0).numpy()
            np.testing.assert_array_equal(oracle.round(), wanted)
