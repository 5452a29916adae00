"""Active learning on the digits: requests, baselines, the oracle, and labels filled in by hand."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.models.resnet import ResNet

import recipes.active as active
from engine.evaluate.predict import predict
from engine.evaluate.representations import extract_features
from engine.nets.backbones import build_backbone
from engine.nets.classifier import load_classifier
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.labels.subsample import few_labels
from loaders.views.evaluation import EvaluationView
from recipes.active import Candidates, Config, choose, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


@pytest.fixture
def config(data: Data, tmp_path: Path) -> Config:
    return trainings.active_config(data, tmp_path / "ask")


@pytest.mark.floor
def test_asks_for_unsure_images_of_every_cluster(config: Config, data: Data) -> None:
    """Images of which a network is unsure are often misclassified."""
    check("active_choice", trainings.active_choice(data, config.out, 0))
    request = choose(config, data.digits)
    counts = np.bincount(request.cluster, minlength=8)
    assert counts.max() == 5
    assert len(request.row) == counts.sum() >= 35
    known = few_labels(data.digits.split("train"), 10, 0)
    assert not np.isin(request.row, known.row).any()
    least = choose(replace(config, strategy="margin"), data.digits)
    assert len(least.row) == 40
    assert least.margin.max() <= np.sort(request.margin)[-1]
    again = choose(config, data.digits)
    assert np.array_equal(again.row, request.row)


def test_the_smallest_margins_of_each_cluster_by_brute_force(
    config: Config, digits_pack: Pack, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With given clusters, and with features of another network than the classifier's."""
    embedding = tmp_path / "embedding"
    embedding.mkdir()
    seed_everything(5)
    backbone = build_backbone("tiny_resnet", 16)
    save_backbone(embedding, backbone, {"backbone": "tiny_resnet", "resolution": "16"})
    given: list[np.ndarray] = []

    def seven(points: np.ndarray, num_clusters: int, seed: int, spherical: bool) -> SimpleNamespace:
        assert spherical
        given.append(points)
        return SimpleNamespace(assignment=np.arange(len(points)) % 7)

    monkeypatch.setattr(active, "kmeans", seven)
    asked = replace(config, clusters=7, per_cluster=3, init=embedding)
    request = choose(asked, digits_pack)
    candidates = Candidates(asked, digits_pack)
    with candidates.loader(candidates.open, EvaluationView.usual(16)) as loader:
        features = extract_features(backbone, loader, "cpu", config.out)
        parts = list(predict(load_classifier(trained, "ema"), loader, "cpu", config.out))
    (points,) = given
    np.testing.assert_allclose(points, features.h.numpy(), rtol=1e-3, atol=1e-4)  # features are float16
    rows = torch.cat([part.index for part in parts]).numpy()
    best = torch.cat([part.probabilities for part in parts]).topk(2)
    margin = (best.values[:, 0] - best.values[:, 1]).numpy()
    expected = {
        int(rows[place])
        for cluster in range(7)
        for place in sorted(range(cluster, len(rows), 7), key=lambda place: margin[place])[:3]
    }
    assert set(request.row.tolist()) == expected
    place = {row: number for number, row in enumerate(rows.tolist())}
    chosen = [place[row] for row in request.row.tolist()]
    np.testing.assert_allclose(request.margin, margin[chosen], atol=1e-5)
    assert request.guess.tolist() == best.indices[chosen, 0].tolist()
    assert request.cluster.tolist() == [number % 7 for number in chosen]


@pytest.mark.parametrize("init", ["", "run"])
def test_an_image_is_shown_once_for_its_features_and_its_margin(
    init: str, config: Config, digits_pack: Pack, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the features come from --init, when its network equals the classifier's frozen backbone."""
    seen: list[int] = []

    def counted(self: ResNet, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return forward(self, x)

    forward = ResNet.forward
    monkeypatch.setattr(ResNet, "forward", counted)
    asked = replace(config, init=trained if init else None, clusters=7, per_cluster=3)
    request = choose(asked, digits_pack)
    images = len(digits_pack.split("unlabeled"))
    padded = -(-images // asked.batch_size) * asked.batch_size
    assert padded <= sum(seen) <= padded + 10  # plus a dummy view for each network that is built
    seen.clear()
    again = choose(replace(asked, strategy="k_centre"), digits_pack)
    assert sum(seen) <= 10
    assert np.isfinite(again.margin).all()
    with monkeypatch.context() as patch:
        patch.setattr(Candidates, "same_backbone", False)
        plain = choose(asked, digits_pack)
    assert np.isin(request.row, plain.row).mean() > 0.8  # float16 moves a margin by a few thousandths
    shared = np.isin(plain.row, request.row)
    np.testing.assert_allclose(
        plain.margin[shared], request.margin[np.isin(request.row, plain.row)], atol=5e-3
    )


def test_the_oracle_knows_and_its_images_are_not_asked_for_again(config: Config, digits_pack: Pack) -> None:
    bought = LabelTable.read(run(replace(config, oracle=True)))
    true = digits_pack.labels.dense(len(digits_pack))
    assert np.array_equal(bought.label, true[bought.row])
    assert set(bought.source) == {"oracle"}
    second = choose(replace(config, extra_labels=(config.out / "bought.parquet",)), digits_pack)
    assert not np.isin(second.row, bought.row).any()


def test_an_oracle_that_does_not_know_is_found_before_the_predictions(
    config: Config, digits_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, known = open_pack(digits_pack.path), digits_pack.labels
    few = few_labels(digits_pack.split("train"), 50, 0).row
    label = known.dense(len(digits_pack))[few]
    pack.__dict__["labels"] = LabelTable.of(few, label, known.num_classes)  # the pack knows only these
    monkeypatch.setattr("recipes.active.open_pack", lambda path, store: pack)
    monkeypatch.setattr("recipes.active.predict", lambda *args: pytest.fail("predicted"))
    with pytest.raises(UserError, match=r"oracle: row \d+ .* has no label in the pack; leave out --oracle"):
        run(replace(config, oracle=True))
    assert not (config.out / "request.csv").exists()


def test_a_filled_request_becomes_a_table(config: Config, digits_pack: Pack, tmp_path: Path) -> None:
    page = run(config).read_text()
    path = config.out / "request.csv"
    guesses = LabelTable.read(config.out / "request.parquet")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == guesses.row.tolist()
    assert page.count("<figure>") == len(lines)
    assert all(f'alt="{line["key"]}"' in page for line in lines)
    assert all(line["key"] == digits_pack.key(int(line["row"])) and not line["label"] for line in lines)
    for line, name in zip(lines, ("7", "", "2"), strict=False):
        line["label"] = name

    def write() -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys())
            writer.writeheader()
            writer.writerows(lines)

    write()
    filled = replace(config, filled=path, out=tmp_path / "bought", run=None, cycle=3)
    replace(filled, unlabeled_splits=("none",)).check_places()  # not read, hence not checked
    table = LabelTable.read(run(filled))
    assert table.row.tolist() == [int(lines[0]["row"]), int(lines[2]["row"])]
    assert [digits_pack.classes[label] for label in table.label] == ["7", "2"]
    assert set(table.source) == {"human"}
    assert set(table.cycle.tolist()) == {3}
    lines[1]["label"] = "eleven"
    write()
    with pytest.raises(UserError, match="line 3: expected a class of the pack, found 'eleven'"):
        run(filled)
    copied = shutil.copytree(digits_pack.path, tmp_path / "pack")
    table = LabelTable.read(run(replace(filled, pack=copied, new_classes=True)))
    assert open_pack(copied).classes == (*digits_pack.classes, "eleven")
    assert table.num_classes == 11
    assert table.label.tolist() == [7, 10, 2]
    lines[1]["label"], lines[0]["key"] = "", "other"
    write()
    with pytest.raises(UserError, match=r"line 2: row \d+ is not 'other'"):
        run(filled)


@pytest.mark.parametrize(
    ("delimiter", "encoding", "first"),
    [(";", "utf-8-sig", ""), ("\t", "utf-16", ""), (",", "utf-8", ""), (";", "utf-8", "sep=;\n")],
)
def test_a_request_may_be_saved_by_a_spreadsheet(
    delimiter: str, encoding: str, first: str, config: Config, digits_pack: Pack, tmp_path: Path
) -> None:
    lines = [("row", "key", "cluster", "margin", "guess", "label")]
    lines += [(str(row), digits_pack.key(row), "0", "", "", "7") for row in (3, 5)]
    lines.append(("8", digits_pack.key(8)))  # without the empty cells at its end
    path = tmp_path / "request.csv"
    path.write_text(first + "".join(delimiter.join(line) + "\n" for line in lines), encoding)
    table = LabelTable.read(run(replace(config, filled=path, run=None)))
    assert table.row.tolist() == [3, 5]
    assert [digits_pack.classes[label] for label in table.label] == ["7", "7"]


def test_labels_filled_in_outlive_another_request(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config.out / "request.csv"
    assert run(config) == run(config), "an empty request is written again"
    filled = path.read_text().replace(",\n", ",7\n").encode()
    path.write_bytes(filled)
    monkeypatch.setattr("recipes.active.predict", lambda *args: pytest.fail("predicted"))
    for again in (config, replace(config, oracle=True)):
        with pytest.raises(UserError, match=r"expected no labels .* found \d+; .* --filled .*csv"):
            run(again)
    assert path.read_bytes() == filled


def test_mistakes(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected --run"):
        run(replace(config, run=None))
    with pytest.raises(UserError, match="classifier: expected one in"):
        run(replace(config, run=tmp_path))
    with pytest.raises(UserError, match="k-means: expected 1 to"):
        run(replace(config, clusters=5000))
