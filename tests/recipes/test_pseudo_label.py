"""Pseudo-labels on the digits: the three modes, their label tables, and resuming after an interruption."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recipes.pseudo_label as recipe
from engine.train import phases
from engine.train.metrics import read_metrics
from loaders import open_pack
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack
from recipes.pseudo_label import Config, Labeller, run_classical, run_cycles
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.recipes.labelled import FEW, check_exact_runs


@pytest.fixture
def config(data: Data, little_pack: Pack, tmp_path: Path) -> Config:
    return replace(trainings.pseudo_label_config(data, tmp_path / "run"), pack=little_pack.path)


@pytest.mark.floor
def test_classical_learns_the_digits(data: Data, tmp_path: Path) -> None:
    """In so few steps, rounding decides whether guesses help; the next test shows that they do."""
    check("pseudo_label_classical", trainings.pseudo_label_classical(data, tmp_path / "run", 0))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    first, last = records[0], records[-1]
    assert first["loss"] == pytest.approx(first["supervised"])  # alpha(0) = 0
    assert last["loss"] == pytest.approx(last["supervised"] + last["unsupervised"], rel=1e-4)
    assert last["unsupervised"] > 0  # so the equation above shows that the weight is 1


@pytest.mark.floor
def test_guesses_teach_what_the_labels_do_not(data: Data, tmp_path: Path) -> None:
    check("pseudo_label_clusters", trainings.pseudo_label_clusters(data, tmp_path / "run", 0))


def test_classical_runs_repeat_and_resume_exactly(config: Config, tmp_path: Path, little_pack: Pack) -> None:
    small = replace(config, mu=2, batch_size=20)
    check_exact_runs(small, lambda c: run_classical(c, little_pack), tmp_path, steps=6)


def tables(out: Path) -> list[LabelTable]:
    return [LabelTable.read(path) for path in sorted((out / "labels").iterdir())]


@pytest.mark.floor
def test_local_mode_learns_in_turns_and_keeps_its_labels(
    config: Config, digits_pack: Pack, data: Data
) -> None:
    check("pseudo_label_local", trainings.pseudo_label_local(data, config.out, 0))
    assert (config.out / "cycle-1-true").is_dir()
    (table,) = tables(config.out)
    unlabeled = digits_pack.split("unlabeled")
    assert np.isin(table.row, unlabeled.rows(np.arange(len(unlabeled)))).all()
    assert set(table.source) == {"pseudo"}
    assert table.confidence.min() >= 0.9


def test_local_mode_leaves_out_a_cycle_that_labels_too_few_for_a_batch(
    config: Config, little_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm cannot train on one image."""
    guess = recipe.guess_labels

    def surest(*args: Any) -> Any:
        found = guess(*args)
        return replace(found, **{name: values[:1] for name, values in vars(found).items()})

    monkeypatch.setattr(recipe, "guess_labels", surest)
    small = replace(config, mode="local", cycles=1, first_epochs=1, epochs=1, threshold=0.0)
    assert [phase.name for phase in run_cycles(small, little_pack)] == ["start", "cycle-1-true"]
    (table,) = tables(config.out)
    assert len(table) == 1


def test_permanent_mode_never_changes_a_label(config: Config, little_pack: Pack, monkeypatch) -> None:
    seen: list[LabelTable] = []
    train = Labeller.train

    def watched(self, name, labels, *rest):
        seen.append(labels)
        return train(self, name, labels, *rest)

    monkeypatch.setattr(Labeller, "train", watched)
    run_cycles(replace(config, mode="permanent", first_epochs=12, threshold=0.2, epochs=1), little_pack)
    assert len(seen) == 3
    for before, after in pairwise(seen):
        labels = after.dense(len(little_pack))
        assert len(after) > len(before)
        assert np.array_equal(labels[before.row], before.label)
    first, second = tables(config.out)
    again = np.intersect1d(first.row, second.row)
    assert (first.dense(len(little_pack))[again] != second.dense(len(little_pack))[again]).any()


def test_an_interrupted_command_goes_on_to_the_same_end(
    config: Config, little_pack: Pack, tmp_path: Path, monkeypatch
) -> None:
    config = replace(config, mode="local", first_epochs=3, epochs=1, threshold=0.2)
    run_cycles(config, little_pack)
    broken = replace(config, out=tmp_path / "broken")
    with monkeypatch.context() as patched:
        train = phases.build_labeled_loader
        calls: list[int] = []

        def failing(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return train(*args, **options)

        patched.setattr(phases, "build_labeled_loader", failing)
        with pytest.raises(KeyboardInterrupt):
            run_cycles(broken, little_pack)
    with pytest.raises(UserError, match="add --resume to continue"):
        run_cycles(broken, little_pack)
    run_cycles(replace(broken, resume=True), little_pack)
    for name in ("classifier.safetensors", "accuracy.json", "labels/cycle-2.parquet"):
        assert (broken.out / name).read_bytes() == (config.out / name).read_bytes(), name


def test_the_threshold_grows_with_the_epochs_and_the_cycles(
    config: Config, little_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the report, the threshold starts at 0.9 and grows by 0.02 each time."""
    used: list[float] = []

    def loss(labeled, labels, weak, strong, threshold, weight, *weights):
        used.append(threshold)
        return fixmatch_loss(labeled, labels, weak, strong, threshold, weight)

    def guess(network, loader, device, num_rows, threshold, out):
        used.append(threshold)
        return guess_labels(network, loader, device, num_rows, threshold, out)

    fixmatch_loss, guess_labels = recipe.fixmatch_loss, recipe.guess_labels
    monkeypatch.setattr(recipe, "fixmatch_loss", loss)
    monkeypatch.setattr(recipe, "guess_labels", guess)
    growing = replace(config, threshold_growth=0.02, mu=3, batch_size=40, epochs=3)
    summary = run_classical(growing, little_pack)
    steps = summary.step // 3
    assert used == pytest.approx([0.9] * steps + [0.92] * steps + [0.94] * steps)
    used.clear()
    cycles = replace(growing, out=config.out / "cycles", mode="local", cycles=2, first_epochs=1, epochs=1)
    run_cycles(cycles, little_pack)
    assert used == pytest.approx([0.9, 0.92])


def test_mistakes(config: Config, little_pack: Pack) -> None:
    with pytest.raises(UserError, match="threshold: expected a share"):
        replace(config, threshold=1.5)
    with pytest.raises(UserError, match=r"threshold: expected at most --threshold-limit, 0\.9, found 0\.95"):
        replace(config, threshold=0.95, threshold_growth=0.01, threshold_limit=0.9)
    replace(config, threshold=0.995)  # the limit is only for a growing threshold
    with pytest.raises(UserError, match="max_steps: expected none for a command of several phases"):
        run_cycles(replace(config, mode="local", max_steps=3), little_pack)


def test_turns_are_steps_on_unlabelled_batches_and_then_a_labelled_one(
    little_pack: Pack, tmp_path: Path
) -> None:
    few = FEW | {"unlabeled_splits": ("train",), "mu": 2, "threshold": 0.0, "turns": True, "lr": 0.01}
    config = Config(pack=little_pack.path, out=tmp_path / "run", mixing="mixup", **few)
    check_exact_runs(config, lambda c: run_classical(c, open_pack(c.pack)), tmp_path, steps=7)
    records = read_metrics(config.out / "metrics.jsonl")
    assert ["supervised" in record for record in records] == [False, False, True, False, False, True, False]
    assert ["unsupervised" in record for record in records] == [True, True, False, True, True, False, True]
    for record in records:
        assert record["loss"] == record.get("supervised", record.get("unsupervised"))
    with pytest.raises(UserError, match=r"turns: expected --mode classical, .* found local"):
        replace(config, mode="local")
