"""Stored features equal the network's, are computed once even after a stop, and fit network and views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.evaluate.feature_store import FeatureStore, store_features
from engine.nets.layers import Layer, LayerFeatures
from loaders import LoaderOptions, build_loader
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.epochs import EpochLoader
from loaders.packs import Pack, open_pack
from loaders.views import presets
from tests.engine.ranks import run_ranks


class Counting(nn.Module):
    """A network that returns the means of the four quarters of a view and counts its input images."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.count = nn.Parameter(torch.tensor(factor)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return self.factor * nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def loader_of(pack: Pack, seed: int = 0, batch_size: int = 64, views: int = 1) -> EpochLoader:
    policies = (presets.evaluation(16),) if views == 1 else (presets.weak(16),) * views
    options = LoaderOptions(num_threads=1, seed=seed)
    return build_loader(pack.split("test"), policies, batch_size, options=options, mode="eval")


def stored(network: nn.Module, loader: EpochLoader, pack: Pack, out: Path) -> FeatureStore:
    with loader:
        return store_features(network, loader, pack.split("test"), "cpu", out / "features", out)


def test_features_are_computed_once_and_are_those_of_the_network(digits_pack: Pack, tmp_path: Path) -> None:
    network, split = Counting(), digits_pack.split("test")
    found = stored(network, loader_of(digits_pack), digits_pack, tmp_path)
    with loader_of(digits_pack) as loader:
        h = torch.cat([network(batch.views[0])[batch.valid] for batch in loader.epoch(0)])
    features = found.features(split.labels())
    torch.testing.assert_close(features.h.float(), h.detach(), atol=2e-3, rtol=1e-3)
    assert np.array_equal(features.index, split.rows(np.arange(len(split))))
    assert features.h.dtype == torch.float16
    seen = network.count
    again = stored(network, loader_of(digits_pack, batch_size=32), digits_pack, tmp_path)
    assert network.count == seen
    assert np.array_equal(again.h, found.h)


def test_progress_is_shown_and_features_that_are_there_are_told(
    digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.train.progress.LINE_EVERY_S", 0.0)
    stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path)
    assert "features: 64 of 445 images, " in capsys.readouterr().err
    found = stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path)
    assert f"features: 445 of 445 images are stored, in {found.folder}" in capsys.readouterr().err


def test_another_network_view_or_seed_of_random_views_is_another_array(
    digits_pack: Pack, tmp_path: Path
) -> None:
    first = stored(Counting(), loader_of(digits_pack, views=2), digits_pack, tmp_path)
    assert first.h.shape[0] == 2
    assert not np.array_equal(first.h[0], first.h[1])
    others = [
        stored(Counting(2.0), loader_of(digits_pack, views=2), digits_pack, tmp_path),
        stored(Counting(), loader_of(digits_pack, seed=1, views=2), digits_pack, tmp_path),
        stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path),
    ]
    assert len({store.folder for store in (first, *others)}) == 4


class Stopping:
    """A loader that stops in the middle, like a killed process."""

    def __init__(self, loader: EpochLoader, steps: int) -> None:
        self._loader, self._left = loader, steps

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for batch in self._loader.epoch(epoch, start_step):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            yield batch


def test_a_stopped_computation_goes_on(
    digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.evaluate.feature_store._ROWS_PER_MARK", 128)
    network, split = Counting(), digits_pack.split("test")
    with loader_of(digits_pack) as loader, pytest.raises(KeyboardInterrupt):
        store_features(network, Stopping(loader, 5), split, "cpu", tmp_path / "features", tmp_path)
    shown = network.count
    found = stored(network, loader_of(digits_pack), digits_pack, tmp_path)
    assert network.count - shown < len(split) + 64 - 4 * 64 + 1  # progress was saved after four batches
    whole = stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path / "whole")
    assert np.array_equal(found.h, whole.h)
    assert found.present.all()


def test_what_float16_cannot_hold_is_refused(digits_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"65,504"):
        stored(Counting(1e9), loader_of(digits_pack), digits_pack, tmp_path)


def test_a_damaged_note_is_no_note(digits_pack: Pack, tmp_path: Path) -> None:
    network = Counting()
    found = stored(network, loader_of(digits_pack), digits_pack, tmp_path)
    expected = np.array(found.h)
    (found.folder / "store.json").write_text("{")
    assert np.array_equal(stored(network, loader_of(digits_pack), digits_pack, tmp_path).h, expected)


def test_rows_that_cannot_be_read_are_left_out(digits_pack: Pack, tmp_path: Path) -> None:
    found = stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path)
    found.present[3] = False
    features = found.features(digits_pack.split("test").labels())
    assert len(features.h) == len(found.rows) - 1
    assert int(found.rows[3]) not in features.index.tolist()
    assert len(replace(features, labels=features.labels * 0 - 1).labelled().h) == 0


def part_of_two(path: str, out: str, rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Compute the features of this rank's part of a pack's test images."""
    pack, network = open_pack(path), Counting()
    split, options = pack.split("test"), LoaderOptions(num_threads=1, rank=rank, num_ranks=num_ranks)
    with build_loader(split, (presets.evaluation(16),), 64, options=options, mode="eval") as loader:
        found = store_features(network, loader, split, "cpu", Path(out) / "features", Path(out))
    return {"h": torch.from_numpy(np.array(found.h)), "seen": torch.tensor(network.count)}


def test_two_processes_divide_the_images(digits_pack: Pack, tmp_path: Path) -> None:
    parts = run_ranks(partial(part_of_two, str(digits_pack.path), str(tmp_path)), 2)
    alone = stored(Counting(), loader_of(digits_pack), digits_pack, tmp_path / "alone")
    for part in parts:
        assert np.array_equal(part["h"].numpy(), alone.h)
        assert int(part["seen"]) == 7 * 32  # this rank's part of 445 images, padded


def test_another_layer_of_the_same_weights_is_another_array(digits_pack: Pack, tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    sizes = []
    for layer in (Layer("0"), Layer("1"), Layer("1", 2)):
        with loader_of(digits_pack) as loader:
            network, split = LayerFeatures(backbone, layer), digits_pack.split("test")
            store = store_features(network, loader, split, "cpu", tmp_path / "features", tmp_path)
        sizes.append(store.h.shape[-1])
    assert sizes == [4, 4, 16]
    assert len(list((tmp_path / "features").iterdir())) == 3
