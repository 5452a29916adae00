"""The online probe measures a run without changing its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.evaluate.knn import knn_scores
from engine.evaluate.online_probe import OnlineProbe, probe_images, read_probe
from engine.evaluate.representations import extract_features, topk_accuracy
from engine.nets.backbones import Projector
from engine.train.metrics import read_metrics
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.packs import Pack, open_pack
from loaders.packs.labels.leaks import find_leak
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from tests.engine.synthetic import SmallRecipe, SyntheticLoader, train_small


class LabelledLoader(SyntheticLoader):
    """24 images of three brightnesses, each of which is a class."""

    def __init__(self, labelled: bool = True) -> None:
        super().__init__(steps_per_epoch=3)
        self.labelled = labelled

    def epoch(self, epoch: int, start_step: int = 0):
        for batch in super().epoch(0, start_step):
            labels = batch.index % 3
            x = batch.views[0] + 2.0 * labels.view(-1, 1, 1, 1)
            yield Batch((x,), labels if self.labelled else None, batch.index, batch.valid)


def train_with(out: Path, probe: OnlineProbe | None, **options: object) -> dict[str, Tensor]:
    weights, _ = train_small(out, probe=probe, **options)
    return weights


def test_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(), every_epochs=1)
    plain, probed = train_with(tmp_path / "plain", None), train_with(tmp_path / "probed", probe)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    losses = [[r["loss"] for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("plain", "probed")]
    assert losses[0] == losses[1]
    files = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "optimizer.json")
    for file in files:  # with BatchNorm's statistics, momenta and random generators
        one, other = (tmp_path / n / "checkpoints" / "step-00000006" / file for n in ("plain", "probed"))
        assert one.read_bytes() == other.read_bytes(), file
    assert read_probe(tmp_path / "plain") == []


def test_a_probe_that_draws_numbers_or_moves_statistics_would_be_noticed(tmp_path: Path) -> None:
    """The test above can fail: each of these mistakes changes the result of the training."""

    class Drawing(OnlineProbe):
        def measure(self, backbone: nn.Module, device: torch.device, out: Path) -> dict[str, float]:
            torch.randn(1)
            return super().measure(backbone, device, out)

    class InTrainingMode(OnlineProbe):
        def measure(self, backbone: nn.Module, device: torch.device, out: Path) -> dict[str, float]:
            for batch in self.train.epoch(0):
                backbone(batch.views[0])
            return super().measure(backbone, device, out)

    plain = train_with(tmp_path / "plain", None)
    for number, kind in enumerate((Drawing, InTrainingMode)):
        probe = kind(LabelledLoader(), LabelledLoader(), every_epochs=1)
        weights = train_with(tmp_path / str(number), probe)
        assert not all(torch.equal(plain[name], weights[name]) for name in plain), kind


def test_it_measures_at_the_ends_of_epochs_and_states_its_seconds(tmp_path: Path) -> None:
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(), every_epochs=2)
    recipe = SmallRecipe()
    train_small(tmp_path / "run", recipe, probe=probe, epochs=3)
    records = read_probe(tmp_path / "run")
    assert [r["step"] for r in records] == [6, 9], "every second epoch, and the end"
    assert all(r["seconds"] > 0 for r in records)
    features = extract_features(recipe.backbone, LabelledLoader(), "cpu", tmp_path)
    votes = knn_scores(features.h, features.labels, features.h, 3)
    assert records[-1]["knn_top1"] == pytest.approx(topk_accuracy(votes, features.labels))
    assert records[-1]["linear_top1"] > 0.9


def test_a_resumed_run_has_the_lines_of_a_whole_one(tmp_path: Path) -> None:
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(), every_epochs=1)
    train_with(tmp_path / "whole", probe)
    for max_steps in (2, 3, 5, 6):
        train_with(tmp_path / "parts", probe, max_steps=max_steps, resume=True)
    whole, parts = read_probe(tmp_path / "whole"), read_probe(tmp_path / "parts")
    assert [r["step"] for r in whole] == [r["step"] for r in parts] == [3, 6]
    assert [r["knn_top1"] for r in whole] == [r["knn_top1"] for r in parts]


def test_labels_are_needed(tmp_path: Path) -> None:
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(labelled=False), every_epochs=1)
    with pytest.raises(UserError, match="found one without labels"):
        train_with(tmp_path / "run", probe)


def test_a_fifth_of_one_split_is_held_out(digits_pack: Pack) -> None:
    bank, measured = probe_images(digits_pack, ("train",))
    learned, asked = (part.rows(np.arange(len(part))) for part in (bank, measured))
    assert not set(learned.tolist()) & set(asked.tolist())
    assert len(learned) + len(asked) == len(digits_pack.split("train"))
    classes = np.bincount(measured.labels()) / np.bincount(digits_pack.split("train").labels())
    assert classes == pytest.approx(np.full(10, 0.2), abs=0.01)
    assert find_leak(digits_pack, learned, measured) is None
    one, two = probe_images(digits_pack, ("train", "test"))
    assert (one.name, two.name) == ("train", "test")


def test_a_split_without_labels_or_of_copies_is_refused(digits_folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for source in sorted((digits_folder / "train" / "0").glob("*.jpg"))[:3]:
        (flat / source.name).write_bytes(source.read_bytes())
    pack_dataset(PackOptions(parse_splits([f"train={flat}"]), tmp_path / "none", workers=1))
    with pytest.raises(UserError, match="expected labels in 'train', found none"):
        probe_images(open_pack(tmp_path / "none"), ("train",))
    both = [f"train={digits_folder / 'train'}", f"bare={flat}"]
    pack_dataset(PackOptions(parse_splits(both), tmp_path / "both", workers=1))
    with pytest.raises(UserError, match="expected labels in 'bare', found none; name a labelled split"):
        probe_images(open_pack(tmp_path / "both"), ("train", "bare"))
    folder = tmp_path / "images" / "0"
    folder.mkdir(parents=True)
    content = next((digits_folder / "train" / "0").glob("*.jpg")).read_bytes()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(content)
    pack_dataset(PackOptions(parse_splits([f"train={tmp_path / 'images'}"]), tmp_path / "pack", workers=1))
    with pytest.raises(UserError, match="expected two classes or more in 'train', found one"):
        probe_images(open_pack(tmp_path / "pack"), ("train", "train"))
    other = tmp_path / "images" / "1"
    other.mkdir()
    for number in range(5):
        (other / f"{number}.jpg").write_bytes(content)
    pack_dataset(PackOptions(parse_splits([f"train={tmp_path / 'images'}"]), tmp_path / "two", workers=1))
    with pytest.raises(UserError, match="found only copies; name two splits"):
        probe_images(open_pack(tmp_path / "two"), ("train",))


def test_a_collapsed_network_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = OnlineProbe(LabelledLoader(), LabelledLoader(), every_epochs=1)
    train_small(tmp_path / "sound", probe=probe)
    (first, *_) = read_probe(tmp_path / "sound")
    assert first["feature_std"] > 0.1
    assert first["effective_rank"] > 2.0
    assert "collapsed" not in capsys.readouterr().err

    class Constant(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias + 1e-6 * x.mean((1, 2, 3)).unsqueeze(1)

    recipe = SmallRecipe()
    recipe.backbone, recipe.projector = Constant(), Projector(4, (32, 16))  # type: ignore[assignment]
    train_small(tmp_path / "collapsed", recipe, probe=probe)
    said = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(said) == 2, "at each measurement"
    assert said[0].startswith("warning: the features have collapsed, standard deviation ")
    assert "of 4; lower the learning rate" in said[0]
