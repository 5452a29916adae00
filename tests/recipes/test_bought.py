"""A pack without labels: request labels without a classifier, name classes, and train on the bought table."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.evaluate.representations import extract_features
from engine.nets.backbones import build_backbone
from engine.nets.starts import find_start
from engine.train.distributed import seed_everything
from engine.train.run_folder import read_run, save_backbone
from loaders import LoaderOptions
from loaders.classification import chosen_labels
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, open_pack
from loaders.packs.labels.class_names import write_class_names
from loaders.packs.labels.tables import LabelTable as Table
from loaders.views.evaluation import EvaluationView
from recipes import (
    active,
    fixmatch,
    mean_teacher,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    temporal_ensembling,
    transfer,
)
from recipes.active import Config
from tests.engine.labels.test_acquisition import farthest_first
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tree
from tests.recipes.labelled import FEW
from tools import labels as tool


@pytest.fixture
def bare(tmp_path: Path) -> Pack:
    """A pack of 24 images in one split, without labels or classes."""
    write_tree(tmp_path / "in", {f"{number:02d}.jpg": jpeg(number) for number in range(24)})
    return pack(tmp_path / "bare", f"unlabeled={tmp_path / 'in'}")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Run folder of a random backbone, which never saw a label."""
    seed_everything(5)
    (tmp_path / "start").mkdir()
    backbone = build_backbone("test_resnet", 16)
    save_backbone(tmp_path / "start", backbone, {"backbone": "test_resnet", "resolution": "16"})
    return tmp_path / "start"


@pytest.fixture
def config(bare: Pack, tmp_path: Path) -> Config:
    asked = {"clusters": 4, "per_cluster": 2, "labeled_split": "", "loader": LoaderOptions(num_threads=1)}
    return Config(pack=bare.path, out=tmp_path / "ask", strategy="random", **asked)


def test_random_needs_no_network_and_its_request_becomes_a_table(
    config: Config, bare: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active, "build_loader", lambda *args, **options: pytest.fail("decoded"))
    page = active.run(config)
    path = page.with_suffix(".csv")
    assert not (config.out / "request.parquet").exists(), "nothing was guessed"
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["row"] for line in lines}) == 8
    assert all(line["margin"] == line["guess"] == line["label"] == "" for line in lines)
    for line, name in zip(lines, ("dog", "cat", "dog"), strict=False):
        line["label"] = name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    filled = replace(config, filled=path)
    with pytest.raises(UserError, match=r"names no classes; name them with tools/labels.py import --classes"):
        active.run(filled)
    command = ["import", bare.path, "--file", path, "--name", "b", "--classes", "cat", "dog"]
    monkeypatch.setattr(sys, "argv", ["labels.py", *map(str, command)])
    tool.main()
    bought, imported = (
        LabelTable.read(active.run(filled)),
        LabelTable.read(bare.path / "labels" / "b.parquet"),
    )
    rows = sorted(int(line["row"]) for line in lines[:3])
    assert bought.row.tolist() == imported.row.tolist() == rows
    assert bought.label.tolist() == imported.label.tolist() == [1, 0, 1]
    asked = active.choose(
        replace(config, extra_labels=(config.out / "bought.parquet",)), open_pack(bare.path)
    )
    assert not set(asked.row.tolist()) & set(rows), "no image is bought twice"


def test_k_centre_spreads_over_the_features_of_any_start(
    config: Config, bare: Pack, start: Path, tmp_path: Path
) -> None:
    config = replace(config, strategy="k_centre", init=start)
    first = active.choose(config, bare)
    assert len(first.row) == 8
    assert set(first.guess.tolist()) == {-1}
    candidates = active.Candidates(config, bare)
    with candidates.loader(candidates.open, EvaluationView.usual(16)) as loader:
        found = extract_features(find_start(start).load(), loader, "cpu", tmp_path)
    h = found.h.numpy()[found.index.argsort().numpy()]
    place = int(active.random_choice(24, 1, config.seed)[0])
    assert first.row.tolist() == sorted(farthest_first(h, 8, place, h[:0]))
    write_class_names(bare.path, ("cat", "dog"))
    known = np.array([3, 17])
    Table.of(known, known % 2, 2).write(tmp_path / "known.parquet")
    again = active.choose(replace(config, extra_labels=(tmp_path / "known.parquet",)), open_pack(bare.path))
    left = np.setdiff1d(np.arange(24), known)
    assert again.row.tolist() == sorted(left[farthest_first(h[left], 8, 0, h[known])].tolist())


def test_what_a_strategy_needs_is_said(config: Config) -> None:
    for strategy in ("margin", "cluster_margin"):
        with pytest.raises(UserError, match=r"expected --run, .*--strategy k_centre or random"):
            active.run(replace(config, strategy=strategy))
    with pytest.raises(UserError, match="k_centre: expected --init or --run"):
        active.run(replace(config, strategy="k_centre"))
    with pytest.raises(UserError, match=r"oracle: row 0 .* has no label in the pack"):
        active.run(replace(config, oracle=True))
    assert not config.out.exists()


def cycles(config: pseudo_label.Config) -> object:
    return pseudo_label.run_cycles(config, open_pack(config.pack))


SEMI = {"unlabeled_splits": ("unlabeled",), "max_steps": 1, "mu": 1}
PHASES = {"unlabeled_splits": ("unlabeled",), "epochs": 1, "first_epochs": 1}
RECIPES: dict[str, tuple[Any, Callable[[Any], object], dict[str, Any]]] = {
    "supervised": (supervised.Config, supervised.run, {"max_steps": 1}),
    "fixmatch": (fixmatch.Config, fixmatch.run, SEMI),
    "mean_teacher": (mean_teacher.Config, mean_teacher.run, SEMI),
    "temporal_ensembling": (temporal_ensembling.Config, temporal_ensembling.run, SEMI),
    "ssl_gan": (ssl_gan.Config, ssl_gan.run, SEMI | {"backbone": "gan_discriminator_8"}),
    "pseudo_label": (pseudo_label.Config, cycles, PHASES | {"mode": "local", "cycles": 1}),
    "self_training": (
        self_training.Config,
        self_training.run,
        PHASES | {"per_class": (2,), "top_k": 1, "true_epochs": 1},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train_on_a_table_alone(bare: Pack, tmp_path: Path, name: str) -> None:
    make, run, more = RECIPES[name]
    few = FEW | {"batch_size": 4, "labels_per_class": None, "labeled_split": "", "test_split": ""}
    config = make(pack=bare.path, out=tmp_path / "run", **(few | more))
    with pytest.raises(UserError, match=r"names no classes; name them with tools/labels.py import --classes"):
        run(config)
    write_class_names(bare.path, ("cat", "dog"))
    with pytest.raises(UserError, match="labeled_split: expected a split, or label tables in --extra-labels"):
        run(config)
    for rows, classes, message in (
        (np.arange(8), 3, "expected one of the 2 classes of the pack .* found one of 3; .* another pack"),
        (np.arange(20, 28), 2, "expected rows below 24 as in the pack .* found row 27; .* another pack"),
    ):
        Table.of(rows, rows % 2, classes).write(tmp_path / "other.parquet")
        with pytest.raises(UserError, match=r"label table .*other.parquet: " + message):
            run(replace(config, extra_labels=(tmp_path / "other.parquet",)))
    assert not config.out.exists()
    Table.of(np.arange(8), np.arange(8) % 2, 2, source="human").write(tmp_path / "bought.parquet")
    run(replace(config, extra_labels=(tmp_path / "bought.parquet",)))
    assert (config.out / "classifier.safetensors").is_file()
    assert read_run(config.out)["config"]["labeled_split"] == ""


def test_a_few_of_a_table_and_transfer_from_it(start: Path, tmp_path: Path) -> None:
    """If --labeled-split has no labels, --labels-per-class chooses from the labels of the table."""
    write_tree(tmp_path / "flat", {f"{number:02d}.jpg": jpeg(number) for number in range(12)})
    write_tree(tmp_path / "test", class_tree(2, 3, seed=500))
    packed = pack(tmp_path / "p", f"train={tmp_path / 'flat'}", f"test={tmp_path / 'test'}")
    path, rows = packed.path / "labels" / "bought.parquet", np.arange(10)
    Table.of(rows, rows % 2, 2, source="human").write(path)
    few = {"extra_labels": (path,), "loader": LoaderOptions(num_threads=1)}
    config = supervised.Config(
        pack=packed.path, out=tmp_path / "run", **(FEW | few | {"labels_per_class": 2})
    )
    chosen = chosen_labels(packed, config)
    assert np.bincount(chosen.label).tolist() == [2, 2]
    assert set(chosen.source) == {"human"}
    tuned = transfer.Config(
        pack=packed.path,
        init=start,
        out=tmp_path / "transfer",
        labels_per_class=(2,),
        seeds=(0,),
        method="knn",
        beside_scratch=False,
        **few,
    )
    session = transfer.Session(tuned, transfer.make_accelerator("no"))
    (job,) = transfer.plan(tuned)
    assert session.labels(job).rows(np.arange(4)).tolist() == chosen.row.tolist()
    session.close()
    (result,) = transfer.run(tuned)
    assert result.num_test == 6
