"""Batches of stored features have the rows, labels and order of the batches of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.evaluate.feature_store import FeatureStore
from engine.evaluate.predict import measure_accuracy
from engine.evaluate.stored_loader import StoredLoader
from engine.nets.backbones import TinyResNet
from engine.nets.classifier import Classifier
from loaders import LoaderOptions, build_loader
from loaders.build import Sampler
from loaders.epochs import EpochLoader
from loaders.options import Mode
from loaders.packs import Pack
from loaders.views import presets
from loaders.views.evaluation import EvaluationView


def loader_of(pack: Pack, mode: Mode, rank: int = 0, sampler: Sampler | None = None) -> EpochLoader:
    split = pack.split("train").take(np.arange(0, 300, 3))
    options = LoaderOptions(num_threads=1, rank=rank, num_ranks=2)
    return build_loader(split, (presets.evaluation(16),), 32, options=options, mode=mode, sampler=sampler)


def store_of(pack: Pack, views: int = 2) -> FeatureStore:
    """Build a store whose features encode their view and their row."""
    split = pack.split("train")
    rows = split.rows(np.arange(len(split)))
    h = np.stack([np.stack([np.full(len(rows), view), rows / 8], 1) for view in range(views)])
    return FeatureStore(Path("abc"), h.astype(np.float16), np.ones(len(rows), np.bool_), rows)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("mode", "sampler"), [("train", None), ("train", "balanced"), ("eval", None)])
def test_rows_labels_and_order_are_those_of_the_images(
    mode: Mode, sampler: Sampler | None, rank: int, digits_pack: Pack
) -> None:
    with loader_of(digits_pack, mode, rank, sampler) as loader:
        stored = StoredLoader(loader, store_of(digits_pack), "cpu")
        assert (stored.steps_per_epoch, stored.batch_size) == (loader.steps_per_epoch, loader.batch_size)
        for epoch, first in ((0, 0), (3, 1)):
            pairs = zip(stored.epoch(epoch, first), loader.epoch(epoch, first), strict=True)
            for found, expected in pairs:
                assert torch.equal(found.index, expected.index)
                assert torch.equal(found.labels, expected.labels)
                assert torch.equal(found.valid, expected.valid)
                assert len(found.views) == (2 if mode == "eval" else 1)
                first_view = 0 if mode == "eval" else epoch % 2
                view = torch.full((len(found.index),), float(first_view))
                rows = (found.index / 8).half().float()
                assert torch.equal(found.views[0], torch.stack([view, rows], 1))
        assert stored.bad_rows == {}
        assert stored.fingerprint != loader.fingerprint


def test_a_row_without_features_counts_nowhere_and_is_named(digits_pack: Pack) -> None:
    store = store_of(digits_pack)
    with loader_of(digits_pack, "eval") as loader:
        row = int(next(loader.epoch(0)).index[0])
        store.present[store.rows == row] = False
        stored = StoredLoader(loader, store, "cpu")
        assert next(stored.epoch(0)).valid.tolist()[:2] == [False, True]
        assert list(stored.bad_rows) == [row]


def test_a_classifier_takes_features_for_what_its_backbone_gives(digits_pack: Pack, tmp_path: Path) -> None:
    network = Classifier(TinyResNet(), "tiny_resnet", EvaluationView.usual(16), digits_pack.classes).eval()
    with loader_of(digits_pack, "eval") as loader, torch.no_grad():
        batches = list(loader.epoch(0))
        x = batches[0].views[0]
        assert torch.equal(network(network.backbone(x)), network(x))
        split, store = digits_pack.split("train"), store_of(digits_pack, views=1)
        h = np.zeros((1, len(split), 256), np.float16)
        for batch in batches:
            places = np.searchsorted(store.rows, batch.index.numpy())
            h[0, places] = network.backbone(batch.views[0]).numpy()
        stored = StoredLoader(loader, FeatureStore(store.folder, h, store.present, store.rows), "cpu")
        device = torch.device("cpu")
        found = measure_accuracy(network, stored, device, tmp_path)
        assert found.num_images == sum(int(batch.valid.sum()) for batch in batches)
        assert found.top1 == measure_accuracy(network, loader, device, tmp_path).top1
