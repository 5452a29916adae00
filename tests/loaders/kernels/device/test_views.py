"""The device kernels equal the cpu backend's, in Triton's interpreter or, if there is one, on a GPU."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from loaders.common.errors import MissingBackendError
from loaders.kernels.device import launch
from loaders.kernels.views import codes
from loaders.views import presets
from loaders.views.geometry import ResizedCenterCrop
from loaders.views.policy import (
    Augment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    QuarterTurn,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
    Standardize,
)
from tests.loaders.kernels.device import compiling
from tests.loaders.kernels.device.drawing import on_device, on_host, parameters

CROP = presets.crop_flip(24, normalize=None)
BICUBIC = dataclasses.replace(presets.evaluation(40), interpolation="bicubic", normalize=None)
# The largest difference, and the share of pixels that may differ by more, in operations with a step, where a
# value may fall on the other side of the step.
CLOSE, FEW = 0.01 / 255, 0.001
STEPS = {"posterize", "solarize", "equalize", "rotate", "shear_x", "shear_y", "affine", "fixmatch", "gentle",
         "barlow_b", "translate_x", "translate_y", "jitter"}  # fmt: skip


def plain(view):
    return view if isinstance(view.normalize, Standardize) else dataclasses.replace(view, normalize=None)


def only(*operations):
    return dataclasses.replace(CROP, operations=operations)


def augment(name, low=0.0, high=0.0, signed=False):
    operation = RandAugment((Augment(name, low, high, signed),), num_ops=1, p=1.0)
    return dataclasses.replace(plain(presets.weak(24)), operations=(operation,))


VIEWS = {
    "barlow_a": presets.barlow_a(24),
    "fixmatch": presets.fixmatch_strong(24),
    "crop_flip": CROP,
    "weak": presets.weak(32),
    "barlow_b": presets.barlow_b(40),
    "simclr": presets.simclr(24),
    "gentle": presets.fixmatch_strong_gentle(24),
    "jitter": presets.rotate_translate_jitter(25),
    "rotations": presets.rotations(24)[1],
    "half turn": presets.rotations(25)[2],
    "reconstruction": presets.reconstruction(24),
    "evaluation": presets.evaluation(40, 0.875),
    "mirrored": presets.mirrored(24),
    "rounded": dataclasses.replace(presets.mirrored(24), geometry=ResizedCenterCrop(29)),
    "rounded bicubic": dataclasses.replace(BICUBIC, geometry=ResizedCenterCrop(40)),
    "brightness": only(ColorJitter(brightness=0.8)),
    "contrast": only(ColorJitter(contrast=0.8)),
    "saturation": only(ColorJitter(saturation=0.8)),
    "hue": only(ColorJitter(hue=0.5)),
    "grayscale": only(Grayscale(1.0)),
    "blur": only(GaussianBlur(1.0)),
    "wide blur": only(GaussianBlur(1.0, (9.0, 20.0))),
    "two blurs": only(GaussianBlur(1.0), HorizontalFlip(), GaussianBlur(1.0)),
    "solarize": only(Solarize(1.0)),
    "affine": only(RandomAffine(20.0, 0.1, fill=7.0)),
    "cutout": only(Cutout((0.2, 0.5))),
    "erased by the mean": only(RandomErasing(1.0, fill="mean")),
    "quarter": only(QuarterTurn(3)),
    "autocontrast": augment("autocontrast"),
    "equalize": augment("equalize"),
    "invert": augment("invert"),
    "posterize": augment("posterize", 4, 8),
    "sharpness": augment("sharpness", 0.05, 1.95),
    "rotate": augment("rotate", 0, 30, True),
    "shear_x": augment("shear_x", 0, 0.3, True),
    "shear_y": augment("shear_y", 0, 0.3, True),
    "translate_x": augment("translate_x", 0, 0.3, True),
    "translate_y": augment("translate_y", 0, 0.3, True),
}
SHORT = ("barlow_a", "fixmatch", "erased by the mean", "rounded")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in VIEWS]
)
def test_views_are_the_cpu_backends(name, photos):
    view, images = plain(VIEWS[name]), photos[:3] if name in SHORT else photos[:8]
    drawn = parameters(images, view, seed=1)
    found, launches = on_device(images, view, drawn)
    difference = (found - on_host(images, view, drawn)).abs()
    if name in STEPS:
        assert (difference.amax(1) > CLOSE).float().mean() <= FEW
    else:
        assert difference.max() <= CLOSE
    assert launches <= 6


def test_the_numbers_of_a_view_are_about_200_bytes(photos):
    view = presets.barlow_a(24)
    p = launch.parameters_of(
        np.arange(8), *(np.full(8, 30),) * 2, parameters(photos[:8], view), 24, cubic=True
    )
    assert sum(tensor.nbytes for tensor in p) / 8 <= 220


@pytest.mark.parametrize("number", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_tiles_are_standardised_as_in_double_precision(number, photos):
    """Even dark tiles of low contrast, whose deviation is much smaller than their values."""
    view = presets.tiles(12, 14)[number]
    unscaled = dataclasses.replace(view, normalize=None)
    drawn = parameters(photos, view)
    found, _ = on_device(photos, view, drawn)
    values = 255 * on_host(photos, unscaled, parameters(photos, unscaled)).double()
    spread = values.std((2, 3), correction=0, keepdim=True) + 255 * view.normalize.eps
    expected = (values - values.mean((2, 3), keepdim=True)) / spread
    assert (found - expected).abs().max() < 0.0005
    assert (on_host(photos, view, drawn) - expected).abs().max() < 0.0005


@pytest.mark.slow
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float16", 2e-3), ("bfloat16", 2e-2), ("uint8", 1.0)]
)
def test_every_dtype_and_layout_holds_the_same_pixels(dtype, tolerance, interleaved, photos):
    view = presets.weak(20)
    drawn = parameters(photos[:4], view)
    kind = getattr(torch, dtype)
    expected = on_host(photos[:4], view, drawn, kind).float()
    for channels_last in (False, True):
        found, _ = on_device(photos[:4], view, drawn, kind, channels_last, interleaved)
        assert found.dtype == kind
        assert (found.float() - expected).abs().max() <= tolerance
        if dtype == "uint8":
            assert (found.float() != expected).float().mean() < FEW


def test_odd_images_are_the_cpu_backends():
    """Images of one row, column, pixel or colour, where filters have no neighbours and spreads are 0."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(1, 40), (40, 1), (1, 1), (3, 200)]]
    images.append(np.full((20, 20, 3), 9, np.uint8))
    for view in (CROP, plain(presets.barlow_a(24)), augment("equalize"), augment("autocontrast")):
        drawn = parameters(images, view)
        found, _ = on_device(images, view, drawn)
        assert (found - on_host(images, view, drawn)).abs().max() <= CLOSE, view.name


@pytest.mark.slow
def test_a_view_is_the_same_in_any_company(photos):
    """Sums are formed in a fixed order of blocks, so other views in the batch do not change a byte."""
    view = plain(VIEWS["fixmatch"])
    whole, _ = on_device(photos[:6], view, parameters(photos[:6], view))
    drawn = parameters(photos[:6], view)
    for row in range(6):
        one = type(drawn)(*(getattr(drawn, field.name)[row : row + 1] for field in dataclasses.fields(drawn)))
        alone, _ = on_device(photos[row : row + 1], view, one)
        assert torch.equal(alone[0], whole[row])


def test_launches_are_cut_where_an_operation_needs_the_whole_view():
    planned = launch.plan(
        np.array(
            [
                [codes.BRIGHTNESS, codes.CONTRAST, codes.HUE, codes.BLUR, codes.SOLARIZE],
                [codes.NONE, codes.NONE, codes.GRAYSCALE, codes.NONE, codes.INVERT],
                [codes.BLUR, codes.BLUR, codes.NONE, codes.NONE, codes.EQUALIZE],
            ],
            np.int32,
        )
    )
    nothing = [-1, -1]
    assert planned.transpose(1, 0, 2).tolist() == [
        [[-1, 1], [1, 3], [3, 3], [3, 5], nothing, nothing],
        [[-1, 5], nothing, nothing, nothing, nothing, nothing],
        [[-1, 0], [0, 0], [0, 1], [1, 1], [1, 4], [4, 5]],
    ]
    assert launch.plan(np.zeros((2, 0), np.int32)).tolist() == [[[-1, 0], [-1, 0]]]


def test_a_missing_triton_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "loaders.kernels.device.views", None)
    monkeypatch.delattr("loaders.kernels.device.views", raising=False)
    with pytest.raises(MissingBackendError, match="pip install triton") as refused:
        launch.import_kernels()
    assert "\n" not in str(refused.value)


ROOT = Path(__file__).parents[4]


def compiled(tmp_path, *arguments):
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.loaders.kernels.device.compiling", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["down:bfloat16:111", "90"], id="short"),
        pytest.param([], id="every one", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path, arguments):
    found = compiled(tmp_path, *arguments)
    assert len(found) == (1 if arguments else 2 * len(compiling.every_specialisation()))
    for one in found:
        assert one["registers"] <= 128, one
        assert one["spilled"] == 0, one
