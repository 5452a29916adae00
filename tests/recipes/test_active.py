"""Active learning on the digits: requests, baselines, the oracle, and labels filled in by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loaders.errors import UserError
from loaders.packs import LabelTable, Pack
from loaders.packs.subsample import few_labels
from recipes.active import Config, choose, run


@pytest.fixture
def config(digits_pack: Pack, trained: Path, tmp_path: Path) -> Config:
    return Config(
        pack=digits_pack.path,
        out=tmp_path / "ask",
        run=trained,
        unlabeled_splits=("train",),
        labels_per_class=10,
        clusters=8,
        per_cluster=5,
        num_threads=1,
    )


def test_asks_for_unsure_images_of_every_cluster(config: Config, digits_pack: Pack) -> None:
    request = choose(config, digits_pack)
    counts = np.bincount(request.cluster, minlength=8)
    assert counts.max() == 5
    assert len(request.row) == counts.sum() >= 35
    known = few_labels(digits_pack.split("train"), 10, 0)
    assert not np.isin(request.row, known.row).any()
    average = choose(replace(config, strategy="random", per_cluster=40), digits_pack).margin.mean()
    assert request.margin.mean() < 0.6 * average
    least = choose(replace(config, strategy="margin"), digits_pack)
    assert len(least.row) == 40
    assert least.margin.max() <= np.sort(request.margin)[-1]
    wrong = digits_pack.labels.dense(len(digits_pack))[least.row] != least.guess
    assert wrong.mean() > 0.3, "what a network is unsure of, it often has wrong"
    again = choose(config, digits_pack)
    assert np.array_equal(again.row, request.row)


def test_the_oracle_knows_and_its_images_are_not_asked_for_again(config: Config, digits_pack: Pack) -> None:
    bought = LabelTable.read(run(replace(config, oracle=True)))
    true = digits_pack.labels.dense(len(digits_pack))
    assert np.array_equal(bought.label, true[bought.row])
    assert set(bought.source) == {"oracle"}
    second = choose(replace(config, extra_labels=(config.out / "bought.parquet",)), digits_pack)
    assert not np.isin(second.row, bought.row).any()


def test_a_filled_request_becomes_a_table(config: Config, digits_pack: Pack, tmp_path: Path) -> None:
    path = run(config)
    guesses = LabelTable.read(config.out / "request.parquet")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == guesses.row.tolist()
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
    table = LabelTable.read(run(filled))
    assert table.row.tolist() == [int(lines[0]["row"]), int(lines[2]["row"])]
    assert [digits_pack.classes[label] for label in table.label] == ["7", "2"]
    assert set(table.source) == {"human"}
    assert set(table.cycle.tolist()) == {3}
    lines[1]["label"] = "eleven"
    write()
    with pytest.raises(UserError, match="line 3: expected a class of the pack, found 'eleven'"):
        run(filled)
    lines[1]["label"], lines[0]["key"] = "", "other"
    write()
    with pytest.raises(UserError, match=r"line 2: row \d+ is not 'other'"):
        run(filled)


def test_mistakes(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected --run"):
        run(replace(config, run=None))
    with pytest.raises(UserError, match="expected a classifier in"):
        run(replace(config, run=tmp_path))
    with pytest.raises(UserError, match="k-means: expected 1 to"):
        run(replace(config, clusters=5000))
