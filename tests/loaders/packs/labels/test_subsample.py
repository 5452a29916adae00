"""Few-label subsets are balanced, nested and a pure function of the seed."""

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.packs.labels.subsample import subsample_per_class, tell_scarce

LABELS = np.random.default_rng(0).integers(-1, 5, 400)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_every_class_is_chosen_k_times(k: int) -> None:
    chosen = subsample_per_class(LABELS, k, seed=3)
    assert np.bincount(LABELS[chosen]).tolist() == [k] * 5
    assert (np.diff(chosen) > 0).all()


def test_one_seed_one_subset_and_another_seed_another() -> None:
    first = subsample_per_class(LABELS, 10, seed=0)
    assert np.array_equal(first, subsample_per_class(LABELS.copy(), 10, seed=0))
    assert not np.array_equal(first, subsample_per_class(LABELS, 10, seed=1))


def test_fewer_labels_are_a_part_of_more() -> None:
    assert set(subsample_per_class(LABELS, 2, 0)) < set(subsample_per_class(LABELS, 5, 0))


def test_the_choice_in_one_class_does_not_depend_on_the_others() -> None:
    without = np.where(LABELS == 0, -1, LABELS)
    chosen = subsample_per_class(LABELS, 5, 0)
    assert set(subsample_per_class(without, 5, 0)) == set(chosen[LABELS[chosen] != 0])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least 1, found 0"):
        subsample_per_class(LABELS, 0, 0)
    with pytest.raises(UserError, match="no labels"):
        subsample_per_class(np.full(9, -1), 1, 0)


def test_a_class_with_fewer_images_gives_what_it_has() -> None:
    assert subsample_per_class(np.array([0, 1, 0, -1, 0]), 2, 0).tolist().count(1) == 1
    assert len(subsample_per_class(np.array([0, 1, 0, -1, 0]), 9, 0)) == 4


def test_classes_with_fewer_images_are_named_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell.cache_clear()
    labels, classes = np.array([0] * 5 + [1] * 2 + [2] * 5), ("a", "rare", "b", "none")
    for _ in range(2):
        tell_scarce(labels, 3, classes)
    assert capsys.readouterr().err == (
        "labels per class: expected 3 labelled images of each class, found 2 of 'rare', 0 of 'none'; "
        "continuing with these\n"
    )
    tell_scarce(labels, 6, [*classes, *"defg"])
    assert "0 of 'd' and too few of 3 other classes; continuing with these" in capsys.readouterr().err
    tell_scarce(labels, 2, classes[:3])
    monkeypatch.setenv("RANK", "1")
    tell_scarce(labels, 4, classes)
    assert capsys.readouterr().err == ""
