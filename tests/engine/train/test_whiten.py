"""Whitening stems are set once, by all ranks together; stems that come whitened stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from engine.nets.whitening import WhiteningStem
from engine.train import whiten
from engine.train.whiten import whiten_stems
from tests.engine.synthetic import SyntheticLoader


def networks() -> nn.Module:
    """Return a stem, a copy that stands for its average, and a stem of another size."""
    torch.manual_seed(0)
    stem = WhiteningStem(2, 1, 24)
    return nn.ModuleList([stem, copy.deepcopy(stem), WhiteningStem(3, 1, 54)])


def kernels_of(found: nn.Module) -> list[Tensor]:
    return [part.kernels for part in found]


def test_all_stems_of_a_run_get_the_kernels_of_its_first_views() -> None:
    first, again = networks(), networks()
    before = kernels_of(copy.deepcopy(first))
    whiten_stems(first, SyntheticLoader())
    whiten_stems(again, SyntheticLoader())
    assert all(bool(part.is_set) for part in first)
    assert torch.equal(first[0].kernels, first[1].kernels)
    for ours, same, old in zip(kernels_of(first), kernels_of(again), before, strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, old)


def test_a_stem_with_weights_keeps_them_and_reads_no_batch() -> None:
    ready = networks()
    whiten_stems(ready, SyntheticLoader())
    kept = kernels_of(copy.deepcopy(ready))
    loader = SyntheticLoader(resolution=20)

    def refuse(epoch: int, step: int) -> None:
        raise AssertionError("read a batch")

    loader.before_step = refuse
    whiten_stems(ready, loader)
    assert all(torch.equal(a, b) for a, b in zip(kernels_of(ready), kept, strict=True))
    whiten_stems(nn.Linear(2, 2), loader)


def test_two_ranks_find_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = networks()
    whiten_stems(alone, SyntheticLoader(steps_per_epoch=2))
    sums: list[Tensor] = []
    monkeypatch.setattr(whiten, "world_size", lambda: 2)
    monkeypatch.setattr(whiten, "all_reduce_sum", lambda tensor: (sums.append(tensor), tensor)[1])
    whiten_stems(networks(), SyntheticLoader(2, rank=0, num_ranks=2))
    rank_0 = {tensor.shape: tensor for tensor in sums}
    monkeypatch.setattr(whiten, "all_reduce_sum", lambda tensor: tensor + rank_0[tensor.shape])
    joined = networks()
    whiten_stems(joined, SyntheticLoader(2, rank=1, num_ranks=2))
    for ours, expected in zip(kernels_of(joined), kernels_of(alone), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
