"""Near copies are found among all pairs; if only some pairs are compared, the recall is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.evaluate import near_copies
from engine.evaluate.near_copies import near_pairs
from loaders.common.errors import UserError


def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 16, generator=generator)
    h[300:320] = 3 * h[:20] + 0.05 * torch.randn(20, 16, generator=generator)  # rescaled near copies
    return h.half()


def test_every_pair_that_is_similar_enough_is_found() -> None:
    h = features()
    found = near_pairs(h, 0.98)
    unit = F.normalize(h.float(), dim=1)
    expected = torch.nonzero(torch.triu(unit @ unit.T, 1) >= 0.98)
    assert {*zip(found.first.tolist(), found.second.tolist(), strict=True)} == {
        *map(tuple, expected.tolist())
    }
    assert len(expected) >= 20
    assert (np.diff(found.similarity) <= 0).all()
    assert found.recall == 1.0


def test_beyond_a_size_a_part_is_compared_and_the_recall_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    h = features()
    exact = near_pairs(h, 0.98)
    monkeypatch.setattr(near_copies, "MOST_EXACT", 100)
    found = near_pairs(h, 0.98)
    pairs = {*zip(found.first.tolist(), found.second.tolist(), strict=True)}
    true = {*zip(exact.first.tolist(), exact.second.tolist(), strict=True)}
    assert pairs <= true
    assert found.recall == pytest.approx(len(pairs) / len(true), abs=0.25)  # estimated from a sample
    assert found.recall > 0.5


@pytest.mark.parametrize("exact", [True, False])
def test_images_with_many_copies_are_paired_with_each(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    h = features()
    h[100:180] = h[99]
    monkeypatch.setattr(near_copies, "MOST_EXACT", 60_000 if exact else 100)
    found = near_pairs(h, 0.98)
    among = (found.first >= 99) & (found.second < 180)
    assert among.sum() == 81 * 80 // 2
    assert found.recall > 0.9


@pytest.mark.parametrize("exact", [True, False])
def test_exact_copies_are_found_at_the_highest_threshold(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).half()
    h[200:] = h[:200]
    monkeypatch.setattr(near_copies, "MOST_EXACT", 60_000 if exact else 100)
    found = near_pairs(h, 1.0)
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [
        (number, number + 200) for number in range(200)
    ]


def test_all_alike_are_all_paired_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    h = torch.ones(70, 4).half()
    assert len(near_pairs(h, 0.98).first) == 70 * 69 // 2
    assert len(near_pairs(h[:3], 0.98).first) == 3
    monkeypatch.setattr(near_copies, "MOST_PAIRS", 100)
    with pytest.raises(UserError, match=r"^threshold: expected at most 100 pairs, found more at 0.98; "):
        near_pairs(h, 0.98)
