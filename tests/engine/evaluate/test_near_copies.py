"""Near copies: those of all pairs, and a recall that is measured where not all are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.evaluate import near_copies
from engine.evaluate.near_copies import near_pairs


def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 16, generator=generator)
    h[300:320] = 3 * h[:20] + 0.05 * torch.randn(20, 16, generator=generator)  # copies, of another scale
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
    assert found.recall == pytest.approx(len(pairs) / len(true), abs=0.25)  # of a sample
    assert found.recall > 0.5
