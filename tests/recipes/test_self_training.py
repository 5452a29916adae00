"""Balanced self-training on the digits: rounds, tables, duplicate counts, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from engine.train import phases
from engine.train.checkpoint import list_checkpoints
from engine.train.classifier_recipe import read_accuracy
from loaders.batch import Batch
from loaders.classification import chosen_labels
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from recipes.self_training import Config, Labels, Rounds, beside, run, run_rounds, select_balanced
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check


@pytest.fixture
def config(data: Data, little_pack: Pack, tmp_path: Path) -> Config:
    return replace(trainings.self_training_config(data, tmp_path / "run"), pack=little_pack.path)


class Played:
    """A stand-in for `Rounds` that records its calls."""

    def __init__(self, pseudo: LabelTable) -> None:
        self.calls: list[Any] = []
        self.pseudo = pseudo

    def fine_tune(self, name: str, labels: Labels, init: Path | None, epochs: int) -> Path:
        assert isinstance(labels, LabelTable)
        told = dict(zip(labels.row.tolist(), labels.label.tolist(), strict=True))
        self.calls.append((name, told, init, epochs))
        return Path(name)

    def label(self, run: Path, cycle: int) -> tuple[LabelTable, ...]:
        self.calls.append((run, cycle))
        return (self.pseudo,)


def test_each_round_goes_on_from_the_one_before(config: Config) -> None:
    """A round trains on pseudo and true labels, then on true ones; the result labels the next round."""
    rows = np.arange(4)
    true = LabelTable.of(rows[:2], np.array([0, 1]), 3)
    played = Played(LabelTable.of(rows[1:], np.array([2, 2, 1]), 3, 0.5, "pseudo"))
    run_rounds(config, true, cast(Rounds, played))
    alone, joined = {0: 0, 1: 1}, {0: 0, 1: 1, 2: 2, 3: 1}
    start, first, second = Path("start"), Path("round-1-true"), Path("round-2-true")
    assert played.calls == [
        ("start", alone, None, 30),
        (start, 1),
        ("round-1-pseudo", joined, start, 2),
        ("round-1-true", alone, Path("round-1-pseudo"), 15),
        (first, 2),
        ("round-2-pseudo", joined, first, 2),
        (second.name, alone, Path("round-2-pseudo"), 15),
    ]


@pytest.mark.parametrize(
    ("top1s", "labelled_by", "left"),
    [
        ([0.2, 0.3, 0.4], ["start", "round-1-true"], "round-2-true"),
        ([0.2, 0.3, 0.25], ["start", "round-1-true"], "round-1-true"),
        ([0.5, 0.4, 0.45], ["start", "start"], "start"),
        ([0.5, 0.5, 0.5], ["start", "round-1-true"], "round-2-true"),
    ],
)
def test_rounds_can_go_on_from_the_best_by_validation(
    config: Config, top1s: list[float], labelled_by: list[str], left: str
) -> None:
    true = LabelTable.of(np.arange(2), np.array([0, 1]), 3)
    played, measured = Played(true), iter(top1s)
    acted = SimpleNamespace(validate=lambda run: next(measured), say=lambda line: None)
    played.phases = acted  # type: ignore[attr-defined]
    found = run_rounds(replace(config, go_on_from="best"), true, cast(Rounds, played))
    assert str(found) == left
    assert [str(run) for run, *rest in played.calls if isinstance(run, Path)] == labelled_by


def test_labels_can_be_taken_without_training(config: Config, trained: Path, little_pack: Pack) -> None:
    """As in the 2021 report: labels for FixMatch (section 3.3), and duplicates for each P (section 4.2)."""
    asked = replace(config, init=trained, per_class=(3, 5, 8), labels_only=True)
    assert run(asked) == []
    table = LabelTable.read(config.out / "labels" / "round-1.parquet")
    assert set(table.row.tolist()) <= set(little_pack.split("unlabeled").rows(np.arange(240)).tolist())
    assert 20 < len(table) <= 30
    counts = json.loads((config.out / "labels" / "round-1-duplicates.json").read_text())["counts"]
    assert {3, 5, 8} <= {entry["per_class"] for entry in counts}
    assert not list(config.out.rglob("*.safetensors"))
    with pytest.raises(UserError, match="labels_only: expected a run to label by"):
        replace(asked, init=None)


def test_the_best_cannot_be_told_without_validation_images(config: Config) -> None:
    with pytest.raises(
        UserError, match="go_on_from: expected validation images to tell the best by, found none"
    ):
        run(replace(config, go_on_from="best"))
    assert not config.out.exists()


def test_the_surest_rows_of_each_class_are_selected(tmp_path: Path) -> None:
    """The selection equals a full sort, with a network that returns its input as logits."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(60, 5, generator=generator)
    rows = 100 + torch.randperm(60, generator=generator)
    batches = [
        Batch((x,), None, index, torch.ones(20, dtype=torch.bool))
        for x, index in zip(logits.split(20), rows.split(20), strict=True)
    ]
    network = torch.nn.Identity()
    network.num_classes = 5  # type: ignore[assignment]
    loader = SimpleNamespace(epoch=lambda number, start: iter(batches[start:]), bad_rows={})
    found = select_balanced(cast(Any, network), cast(Any, loader), "cpu", 2, 7, tmp_path)
    scores = logits.softmax(1)
    among_two = scores >= scores.topk(2).values[:, 1:]
    for label in range(5):
        candidates = torch.where(among_two[:, label], scores[:, label], -1.0).argsort(descending=True)
        expected = rows[candidates[: min(7, int(among_two[:, label].sum()))]]
        assert found.row[found.label == label].tolist() == expected.tolist()


@pytest.mark.floor
def test_rounds_of_pseudo_labels_help(config: Config, data: Data) -> None:
    """One round, from five labels per class; the order of several rounds is tested above."""
    figures = trainings.self_training_round(data, config.out, 0)
    check("self_training_round", figures)
    assert read_accuracy(config.out)["raw"].top1 == figures["top1"]
    for name in ("start", "round-1-pseudo", "round-1-true"):
        described = json.loads((config.out / name / "config.json").read_text())["config"]
        assert not described["keep_head"], "the classifier layer starts from random weights each time"
    table = LabelTable.read(config.out / "labels" / "round-1.parquet")
    assert np.bincount(table.label, minlength=10).max() <= 120
    assert len(table) > 0.8 * 10 * 120
    assert set(table.cycle.tolist()) == {1}
    counts = json.loads((config.out / "labels" / "round-1-duplicates.json").read_text())
    shares = [entry["share"] for entry in counts["counts"]]
    assert shares[0] == 0.0
    assert shares[-1] > 0.0
    assert (config.out / "labels" / "round-1-duplicates.png").stat().st_size > 1000


def test_an_interrupted_command_goes_on_to_the_same_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, per_class=(20,), first_epochs=3, epochs=1, true_epochs=2)
    run(config)
    broken = replace(config, out=tmp_path / "broken")
    with monkeypatch.context() as patched:
        build, calls = phases.build_labeled_loader, []

        def failing(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return build(*args, **options)

        patched.setattr(phases, "build_labeled_loader", failing)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    run(replace(broken, resume=True))
    for name in ("classifier.safetensors", "accuracy.json", "labels/round-1.parquet"):
        assert (broken.out / name).read_bytes() == (config.out / name).read_bytes(), name


def test_an_image_under_several_classes_is_trained_on_with_each(config: Config, tmp_path: Path) -> None:
    """P x C pairs of image and class, as in the report; a resumed command reads the labels from disk."""
    small = replace(config, per_class=(20,), first_epochs=3, epochs=1, true_epochs=1, duplicates="all")
    run(small)
    begun = replace(small, init=small.out, out=tmp_path / "begun")  # guesses, not a probe, come first
    run(begun)
    assert not list(begun.out.rglob("rehearsal"))
    folder = small.out / "labels"
    paths = [folder / "round-1.parquet", *sorted(folder.glob("round-1-place-*.parquet"))]
    tables = [LabelTable.read(path) for path in paths]
    (counted,) = (
        entry
        for entry in json.loads((folder / "round-1-duplicates.json").read_text())["counts"]
        if entry["per_class"] == 20
    )
    assert len(tables) > 1
    assert sum(map(len, tables)) == counted["num_pairs"]
    assert len(tables[0]) == counted["num_rows"]
    assert len(tables[1]) == counted["num_shared_rows"]
    pairs = {
        (row, label) for t in tables for row, label in zip(t.row.tolist(), t.label.tolist(), strict=True)
    }
    assert len(pairs) == counted["num_pairs"], "no image stands twice under a class"
    true = chosen_labels(open_pack(small.pack), small)
    expected = len(true) + sum(row not in true.row for row, _ in pairs)
    meta = json.loads(
        (list_checkpoints(small.out / "round-1-pseudo/checkpoints")[-1] / "meta.json").read_text()
    )
    assert f"{expected} of " in meta["data"]["rows"]


def test_what_is_known_stands_under_no_other_class() -> None:
    true = LabelTable.of(np.array([1]), np.array([0]), 3)
    first = LabelTable.of(np.array([1, 2, 4]), np.array([2, 1, 0]), 3)
    second = LabelTable.of(np.array([1, 4]), np.array([1, 2]), 3)
    joined, other = beside(true, first, second)
    assert dict(zip(joined.row.tolist(), joined.label.tolist(), strict=True)) == {1: 0, 2: 1, 4: 0}
    assert (other.row.tolist(), other.label.tolist()) == ([4], [2])
    assert isinstance(beside(true, first, second.of_rows(np.array([1]))), LabelTable)


def test_begins_with_a_run_that_has_a_classifier(config: Config, tmp_path: Path) -> None:
    small = replace(config, per_class=(20,), first_epochs=3, epochs=1, true_epochs=2)
    run(small)
    done = run(replace(small, out=tmp_path / "more", init=small.out))
    assert [phase.name for phase in done] == ["round-1-pseudo", "round-1-true"]


def test_mistakes(config: Config) -> None:
    with pytest.raises(UserError, match="per_class"):
        replace(config, per_class=(5, 0))
    with pytest.raises(UserError, match="top_k"):
        replace(config, top_k=0)
    with pytest.raises(UserError, match="no split 'odd'"):
        run(replace(config, unlabeled_splits=("odd",)))
