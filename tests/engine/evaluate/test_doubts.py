"""Doubted labels equal those of a plain loop, and images unlike every class are found, on drawn features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.evaluate import doubts
from engine.evaluate.doubts import doubted_labels, unlike_every_class

NUM_CLASSES, PER_CLASS, SIZE = 5, 60, 16


def clusters(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw five clusters of different widths, as float16 features, and their classes."""
    rng = np.random.default_rng(seed)
    centres = 6 * rng.standard_normal((NUM_CLASSES, SIZE))
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    width = 0.3 + 0.3 * labels[:, None]
    h = centres[labels] + width * rng.standard_normal((len(labels), SIZE))
    return torch.from_numpy(h).half(), torch.from_numpy(labels)


def test_wrong_labels_are_found_and_right_ones_are_not() -> None:
    h, labels = clusters()
    wrong = torch.arange(3, len(labels), 23)
    given = labels.clone()
    given[wrong] = (given[wrong] + 1) % NUM_CLASSES
    found = doubted_labels(h, given, NUM_CLASSES)
    assert sorted(found.place.tolist()) == wrong.tolist()
    assert found.guess.tolist() == labels[torch.from_numpy(found.place)].tolist()
    assert found.num_judged == len(labels)
    assert len(doubted_labels(h, labels, NUM_CLASSES).place) == 0


def test_the_vote_is_that_of_ten_neighbours_without_the_image_itself() -> None:
    rng = np.random.default_rng(1)
    h, labels = torch.from_numpy(rng.standard_normal((60, 4))), torch.from_numpy(rng.integers(0, 3, 60))
    unit = (h / h.norm(dim=1, keepdim=True)).float()
    expected = {}
    for i in range(60):
        similarity = unit @ unit[i]
        similarity[i] = -9
        best = similarity.argsort(descending=True)[:10]
        weight = torch.softmax(similarity[best] / 0.07, 0)
        votes = torch.zeros(3).index_add_(0, labels[best], weight)
        lead = float(votes.max() - votes[labels[i]])
        if lead >= 0.5:
            expected[i] = (int(votes.argmax()), float(votes.max()), lead)
    found = doubted_labels(h, labels, 3)
    assert found.place.tolist() == sorted(expected, key=lambda i: -expected[i][2])
    assert found.guess.tolist() == [expected[i][0] for i in found.place.tolist()]
    np.testing.assert_allclose(found.share, [expected[i][1] for i in found.place.tolist()], rtol=1e-4)


def test_images_of_no_class_are_far_and_others_are_not() -> None:
    h, labels = clusters()
    rng = np.random.default_rng(7)
    known, held = torch.arange(len(h)) % 3 > 0, torch.arange(len(h)) % 3 == 0
    strange = torch.from_numpy(6 * rng.standard_normal((30, SIZE))).half()
    found = unlike_every_class(h[known], labels[known], NUM_CLASSES, torch.cat([h[held], strange]))
    num_held = int(held.sum())
    assert set(range(num_held, num_held + 30)) <= set(found.place.tolist())
    assert len(found.place) - 30 < 0.15 * num_held
    assert (found.place[:25] >= num_held).all()  # sorted by distance, the farthest first
    assert found.num_judged == num_held + 30


@pytest.mark.parametrize("count", [0, 1, 2])
def test_next_to_nothing_is_judged_without_a_word(count: int) -> None:
    h, labels = torch.randn(count, 3), torch.zeros(count, dtype=torch.int64)
    assert len(doubted_labels(h, labels, 1).place) == 0
    assert unlike_every_class(h, labels, 1, torch.randn(0, 3)).num_judged == 0
    assert len(unlike_every_class(h, labels, 1, torch.randn(4, 3)).place) <= 4


def test_a_class_of_one_image_is_as_wide_as_any() -> None:
    h, labels = clusters()
    kept = (labels > 0) | (torch.arange(len(h)) == 0)
    found = unlike_every_class(h[kept], labels[kept], NUM_CLASSES, h[1:PER_CLASS])
    assert len(found.place) == 0


def test_large_packs_are_judged_by_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    h, labels = clusters()
    monkeypatch.setattr(doubts, "MOST_JUDGED", 40)
    monkeypatch.setattr(doubts, "MOST_COMPARED", 150)
    given = labels.clone()
    given[0] = 1  # the evenly spaced sample always contains the first and the last image
    found = doubted_labels(h, given, NUM_CLASSES)
    assert (found.num_judged, found.place.tolist(), found.guess.tolist()) == (40, [0], [0])
    assert unlike_every_class(h, labels, NUM_CLASSES, h).num_judged == 40
