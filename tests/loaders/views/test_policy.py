"""Policies that no kernel could render are refused when they are created, with one line."""

from math import inf, nan

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import CenterCrop, PaddedCrop, RandomResizedCrop, Tile
from loaders.views.policy import (
    AlternatingFlip,
    Augment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    HorizontalFlip,
    Normalize,
    QuarterTurn,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
    Standardize,
    ViewPolicy,
)

INVERT = (Augment("invert"),)
WRONG = {
    "a scale above 1": lambda: RandomResizedCrop(scale=(0.5, 1.5)),
    "a scale the wrong way round": lambda: RandomResizedCrop(scale=(0.9, 0.1)),
    "a scale that is one number": lambda: RandomResizedCrop(scale=0.5),
    "a scale of one end": lambda: RandomResizedCrop(scale=(0.5,)),
    "a ratio of NaN": lambda: RandomResizedCrop(ratio=(nan, 1.0)),
    "no share": lambda: CenterCrop(0.0),
    "a share of NaN": lambda: CenterCrop(nan),
    "padding of the whole view": lambda: PaddedCrop(1.0),
    "a cell outside the grid": lambda: Tile(3, 0),
    "more cells than blocks of random numbers": lambda: Tile(0, 0, grid=256, cell=1),
    "half a cell": lambda: Tile(0.5, 0),
    "a probability of None": lambda: HorizontalFlip(None),
    "a probability of True": lambda: HorizontalFlip(True),
    "a probability above 1": lambda: HorizontalFlip(1.5),
    "a probability that is text": lambda: GaussianBlur("0.5"),
    "a sigma that is one number": lambda: GaussianBlur(1.0, 2.0),
    "infinite brightness": lambda: ColorJitter(brightness=inf),
    "contrast beyond float32": lambda: ColorJitter(contrast=1e39),
    "hue beyond half a circle": lambda: ColorJitter(hue=0.6),
    "a negative threshold": lambda: Solarize(threshold=-1.0),
    "an infinite fill": lambda: RandomAffine(degrees=90, fill=inf),
    "a cutout's fill of NaN": lambda: Cutout(fill=nan),
    "a cutout's fill beyond 255": lambda: Cutout(fill=1e39),
    "an erased share above 1": lambda: RandomErasing(scale=(0.5, 1.5)),
    "an erased ratio of 0": lambda: RandomErasing(ratio=(0.0, 1.0)),
    "an unknown fill": lambda: RandomErasing(fill="zeros"),
    "an unknown operation": lambda: Augment("swirl"),
    "brightness of NaN": lambda: Augment("brightness", nan, nan),
    "negative brightness": lambda: Augment("brightness", -5, -1),
    "signed brightness": lambda: Augment("brightness", 0.1, 1.9, signed=True),
    "negative bits": lambda: Augment("posterize", -3, -1),
    "more bits than there are": lambda: Augment("posterize", 20, 30),
    "a negative level": lambda: Augment("solarize", -10, -5),
    "an infinite angle": lambda: Augment("rotate", inf, inf),
    "a slope without end": lambda: Augment("shear_x", 1e30, 1e30),
    "a shift out of the view": lambda: Augment("translate_x", 50, 50),
    "no operations": lambda: RandAugment(()),
    "operations by name": lambda: RandAugment(("invert",)),
    "one and a half operations": lambda: RandAugment(INVERT, num_ops=1.5),
    "levels that are one number": lambda: RandAugment(INVERT, levels=3),
    "half a level": lambda: RandAugment(INVERT, levels=(1, 2.5)),
    "a turn of 1.0": lambda: QuarterTurn(1.0),
    "five quarters": lambda: QuarterTurn(5),
    "two channels": lambda: Normalize((0, 0), (1, 1)),
    "a mean of NaN": lambda: Normalize((nan, 0, 0), (1, 1, 1)),
    "a deviation of NaN": lambda: Normalize((0, 0, 0), (1, nan, 1)),
    "a deviation of 0": lambda: Normalize((0, 0, 0), (1, 0, 1)),
    "an infinite eps": lambda: Standardize(inf),
    "brightness beyond every float": lambda: ColorJitter(brightness=10**400),
    "resolution 0": lambda: ViewPolicy("x", 0, CenterCrop()),
    "resolution True": lambda: ViewPolicy("x", True, CenterCrop()),
    "resolution 32.5": lambda: ViewPolicy("x", 32.5, CenterCrop()),
    "no geometry": lambda: ViewPolicy("x", 32, None),
    "an operation as geometry": lambda: ViewPolicy("x", 32, HorizontalFlip()),
    "an operation alone": lambda: ViewPolicy("x", 32, CenterCrop(), HorizontalFlip()),
    "a function as operation": lambda: ViewPolicy("x", 32, CenterCrop(), (print,)),
    "a tile larger than its cell": lambda: ViewPolicy("x", 80, Tile(0, 0)),
    "statistics by name": lambda: ViewPolicy("x", 32, CenterCrop(), normalize="imagenet"),
    "an unknown filter": lambda: ViewPolicy("x", 32, CenterCrop(), interpolation="lanczos"),
    "shared draws of a later view": lambda: ViewPolicy("x", 32, CenterCrop(), shares_draws_of=-1),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_rendered_is_refused(mistake: str) -> None:
    with pytest.raises(UserError, match=r"expected .*, found .*; change the policy") as error:
        WRONG[mistake]()
    assert "\n" not in str(error.value)


SHEAR = (Augment("invert"), Augment("shear_y", 0.0, 0.3))


@pytest.mark.parametrize("flip", [HorizontalFlip(1.0), AlternatingFlip()])
@pytest.mark.parametrize("warp", [QuarterTurn(1), QuarterTurn(3), RandomAffine(10.0), RandAugment(SHEAR)])
def test_a_flip_behind_a_warp_is_refused(warp, flip) -> None:
    """The kernel would apply such a flip too early: while resizing, which comes before the warp."""
    between = ColorJitter(brightness=0.1)
    with pytest.raises(UserError, match=r"of view x: expected flips before .*; put the flip first") as error:
        ViewPolicy("x", 32, CenterCrop(), (warp, between, flip))
    assert "\n" not in str(error.value)
    ViewPolicy("x", 32, CenterCrop(), (flip, between, warp))


@pytest.mark.parametrize("operation", [QuarterTurn(2), RandAugment(INVERT), Solarize(), Cutout()])
def test_a_flip_may_stand_behind_what_has_no_sides(operation) -> None:
    ViewPolicy("x", 32, CenterCrop(), (operation, HorizontalFlip()))


def test_the_weak_view_without_padding_is_the_flip_alone() -> None:
    rows, sides = np.arange(64), np.full(64, 40)
    drawn = draw(presets.weak(32, padding=0.0), 0, 0 * rows, rows, 0, sides, sides)
    assert 0 < drawn.flip.sum() < 64
    assert not drawn.shift.any()
    assert draw(presets.weak(32), 0, 0 * rows, rows, 0, sides, sides).shift.any()


def test_augmentations_stand_behind_a_views_own_operations() -> None:
    view = presets.weak(32)
    assert presets.augmented(view, ()) is view
    everything = presets.augmented(view, ("randaugment", "jitter", "translation", "rotation"))
    flip, warp, jitter, randaugment = everything.operations
    assert (flip, everything.geometry) == (view.operations[0], view.geometry)
    assert warp == RandomAffine(degrees=15.0, translate=0.1), "one warp for both"
    assert isinstance(jitter, ColorJitter)
    assert isinstance(randaugment, RandAugment)
    assert presets.augmented(view, ("rotation",)).operations[1:] == (RandomAffine(degrees=15.0),)
    assert presets.augmented(view, ("translation",)).operations[1:] == (RandomAffine(translate=0.1),)
    assert presets.rotate_translate_jitter(32).operations == (HorizontalFlip(0.5), warp, jitter)


def test_an_affine_positive_is_the_anchor_warped() -> None:
    anchor, positive = presets.affine(32, flip_p=0.5)
    assert positive.shares_draws_of == 1, "the flip is that of the anchor"
    assert positive.geometry == anchor.geometry
    assert positive.operations[: len(anchor.operations)] == anchor.operations
    turn, slant = positive.operations[1:]
    assert turn == RandomAffine(degrees=30.0, translate=0.1)
    assert {augment.name for augment in slant.augments} == {"shear_x", "shear_y"}
