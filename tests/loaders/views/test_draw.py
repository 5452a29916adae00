import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from loaders.kernels.views.codes import BRIGHTNESS, CONTRAST, CUTOUT, GRAYSCALE, HUE, NOISE, SATURATION
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import PaddedCrop
from loaders.views.policy import ColorJitter, Grayscale, RandomErasing, ViewPolicy

NUM = 4000


def draw_many(policy, num=NUM, height=120, width=90, seed=0, epoch=0, view=0):
    rows = np.arange(num)
    size = np.ones(num, np.int64)
    return draw(policy, seed, np.full(num, epoch), rows, view, size * height, size * width)


@pytest.mark.parametrize(("height", "width"), [(120, 90), (40, 400)])
def test_crops_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    transform = v2.RandomResizedCrop(8, antialias=True)
    boxes = [transform.make_params([image]) for _ in range(NUM)]
    theirs = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in boxes], float)
    ours = draw_many(presets.crop_flip(8), height=height, width=width).box
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    for values in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        assert stats.ks_2samp(values(ours), values(theirs)).pvalue > 1e-3


def test_jitter_is_distributed_as_torchvisions():
    policy = ViewPolicy("jitter", 8, presets.crop_flip(8).geometry, (ColorJitter(0.4, 0.3, 0.2, 0.1, p=0.8),))
    drawn = draw_many(policy)
    ranges = {BRIGHTNESS: (0.6, 1.4), CONTRAST: (0.7, 1.3), SATURATION: (0.8, 1.2), HUE: (-0.1, 0.1)}
    applied = (drawn.codes != 0).any(axis=1)
    assert stats.binomtest(int(applied.sum()), NUM, 0.8).pvalue > 1e-3
    for code, (low, high) in ranges.items():
        values = drawn.args[drawn.codes == code]
        assert len(values) == applied.sum()
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    orders, counts = np.unique(drawn.codes[applied], axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("fill", "code"), [("noise", NOISE), ("mean", CUTOUT)])
def test_erased_boxes_are_distributed_as_torchvisions(fill, code):
    """With area fractions up to 1, so that many boxes do not fit and are redrawn, some without success."""
    torch.manual_seed(0)
    image, options = torch.zeros(3, 32, 32), {"scale": (0.02, 1.0), "ratio": (0.3, 3.3)}
    transform = v2.RandomErasing(1.0, **options)
    made = [transform.make_params([image]) for _ in range(NUM)]
    theirs = np.array([[box[name] for name in "ijhw"] for box in made if box["v"] is not None], float)
    drawn = draw_many(ViewPolicy("erased", 32, PaddedCrop(), (RandomErasing(0.7, **options, fill=fill),)))
    applied = drawn.codes[:, 0] == code
    assert stats.binomtest(int(applied.sum()), NUM, 0.7 * len(theirs) / NUM).pvalue > 1e-3
    ours = drawn.args[applied, :4].astype(float)
    ours[:, 2:] -= ours[:, :2]
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    if fill == "noise":
        assert len(np.unique(drawn.args[applied, 4:6], axis=0)) == applied.sum()


def test_probabilities_hold_and_operations_are_independent():
    drawn = draw_many(presets.barlow_b(8))
    flipped, gray = drawn.flip, (drawn.codes == GRAYSCALE).any(axis=1)
    assert stats.binomtest(int(flipped.sum()), NUM, 0.5).pvalue > 1e-3
    assert stats.binomtest(int(gray.sum()), NUM, 0.2).pvalue > 1e-3
    assert abs(np.corrcoef(flipped, gray)[0, 1]) < 0.06


def test_a_row_does_not_depend_on_its_batch():
    policy = presets.barlow_a(8)
    whole = draw_many(policy, num=64)
    some = np.array([40, 3, 17])
    ones = np.ones(3, np.int64)
    part = draw(policy, 0, np.zeros(3, np.int64), some, 0, ones * 120, ones * 90)
    for name in ("box", "window", "shift", "flip", "codes", "args"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[some])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}, {"view": 1}])
def test_seed_epoch_and_view_change_the_draw(changed):
    policy = presets.barlow_a(8)
    assert (draw_many(policy).box != draw_many(policy, **changed).box).any(axis=1).mean() > 0.9


def test_padded_crop_shifts_by_whole_pixels_within_the_padding():
    drawn = draw_many(ViewPolicy("weak", 32, PaddedCrop(0.125)), height=32, width=32)
    assert set(np.unique(drawn.shift)) == set(range(-4, 5))
    assert stats.chisquare(np.unique(drawn.shift[:, 0], return_counts=True)[1]).pvalue > 1e-3


def test_zero_probability_draws_nothing():
    policy = ViewPolicy("never", 8, presets.crop_flip(8).geometry, (Grayscale(p=0.0),))
    assert not draw_many(policy).codes.any()


def test_flips_in_turns_show_every_image_from_both_sides():
    view = presets.flipped_in_turns(presets.weak(16))
    epochs = [draw_many(view, epoch=epoch) for epoch in range(4)]
    assert stats.binomtest(int(epochs[0].flip.sum()), NUM, 0.5).pvalue > 1e-3
    for first, second in ((0, 1), (1, 2), (2, 3)):
        assert (epochs[first].flip != epochs[second].flip).all()
        assert (epochs[first].shift != epochs[second].shift).any()  # the shift stays random
    assert not draw_many(presets.flipped_in_turns(presets.weak(16, flip_p=0.0)), epoch=1).flip.any()
    mixed = draw(view, 0, np.arange(4), np.zeros(4, np.int64), 0, *(np.full(4, 32),) * 2).flip
    assert mixed.tolist() == [mixed[0], not mixed[0], mixed[0], not mixed[0]]
