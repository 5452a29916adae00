"""Alternating labelled and unlabelled batches have the rows of paired ones, from any step and on any rank."""

from __future__ import annotations

import torch

from loaders import LoaderOptions, build_paired_loader
from loaders.alternating import Alternating
from loaders.packs import Pack
from loaders.views import presets


def build(pack: Pack, rank: int = 0, num_ranks: int = 1) -> tuple[Alternating, int]:
    view, train = (presets.weak(16),), pack.split("train")
    options = LoaderOptions(num_threads=1, rank=rank, num_ranks=num_ranks)
    pairs = build_paired_loader(train, train, view, view, 2, 3, options=options)
    return Alternating(pairs, 3), pairs.steps_per_epoch


def test_a_pair_becomes_mu_unlabelled_batches_and_the_labelled_one(photo_pack: Pack) -> None:
    loader, pairs = build(photo_pack)
    steps = list(loader.epoch(1))
    loader.close()
    assert len(steps) == loader.steps_per_epoch == 4 * pairs
    assert loader.batch_size == 2
    for number, step in enumerate(steps):
        rows = (len(step.labeled.index), len(step.unlabeled.index))
        assert rows == ((2, 0) if number % 4 == 3 else (0, 2))
        for part in (step.labeled, step.unlabeled):
            assert len(part.views[0]) == len(part.index) == len(part.valid)
        assert step.unlabeled.labels is None
        assert step.labeled.labels is not None
        assert len(step.labeled.labels) == rows[0]
    unlabeled = torch.cat([step.unlabeled.index for step in steps])
    assert len(torch.unique(unlabeled)) == len(unlabeled) == 6 * pairs
    together, _ = build(photo_pack)
    whole = list(together._loader.epoch(1))
    together.close()
    assert torch.equal(unlabeled, torch.cat([pair.unlabeled.index for pair in whole]))
    labeled = torch.cat([step.labeled.views[0] for step in steps])
    assert torch.equal(labeled, torch.cat([pair.labeled.views[0] for pair in whole]))


def test_an_epoch_goes_on_inside_a_pair(photo_pack: Pack) -> None:
    loader, _ = build(photo_pack)
    whole = list(loader.epoch(0))
    for start in (1, 3, 4, 6):
        rest = list(loader.epoch(0, start_step=start))
        assert len(rest) == len(whole) - start
        for found, expected in zip(rest, whole[start:], strict=True):
            assert torch.equal(found.unlabeled.index, expected.unlabeled.index)
            assert torch.equal(found.labeled.index, expected.labeled.index)
    loader.close()


def test_ranks_share_each_turn(photo_pack: Pack) -> None:
    one, _ = build(photo_pack)
    expected = [set(step.unlabeled.index.tolist()) for step in one.epoch(0)][:3]
    one.close()
    ranks = [build(photo_pack, rank, 2)[0] for rank in range(2)]
    steps = [list(loader.epoch(0))[:3] for loader in ranks]
    for loader in ranks:
        loader.close()
        assert loader.fingerprint == one.fingerprint
    rows = [set(step.unlabeled.index.tolist()) for own in steps for step in own]
    assert set.union(*rows) == set.union(*expected), "of one pair; which of its rows a turn has may differ"
