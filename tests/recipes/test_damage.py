"""Damaged images: what a recipe's command line says about them, and how its run reports them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from engine.train.bad_rows import describe_bad_rows, read_bad_rows
from engine.train.metrics import read_metrics
from engine.train.run import print_summary
from loaders import LoaderOptions
from loaders.common.errors import LoaderError
from loaders.packs import Pack, open_pack
from recipes import active, barlow, evaluate, pipeline, pseudo_label, self_training, supervised, transfer
from recipes import deepcluster as clustering
from tests.recipes.labelled import FEW
from tools import probe as frozen

pytestmark = pytest.mark.usefixtures("blank_drawings")

VERIFIED = LoaderOptions(verify=True, num_threads=1)


def damage(pack: Pack, rows: Sequence[int]) -> None:
    """Flip a bit of some images, so that they still decode."""
    for row in rows:
        shard = pack.shard_path(int(pack.columns.shard[row]))
        content = bytearray(shard.read_bytes())
        content[int(pack.columns.offset[row]) + int(pack.columns.size[row]) - 3] ^= 1
        shard.write_bytes(content)


def test_damaged_images_of_training_and_test_are_reported(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(few_digits, tmp_path / "pack")
    pack = open_pack(tmp_path / "pack")
    trained, tested = int(pack.split("train").row_ranges[0][0]), int(pack.split("unlabeled").row_ranges[0][0])
    damage(pack, (trained, tested))
    few = FEW | {"batch_size": 32, "epochs": 2, "labels_per_class": None, "test_split": "unlabeled"}
    few |= {"allow_leak": True}  # both splits hold the same images
    config = supervised.Config(pack=pack.path, out=tmp_path / "unseen", **few)
    supervised.run(config)
    assert read_bad_rows(config.out) == {}
    config = replace(config, out=tmp_path / "run", loader=VERIFIED)
    summary = supervised.run(config)
    assert sorted(read_bad_rows(config.out)) == sorted((trained, tested))
    assert all("CRC-32" in reason for reason in read_bad_rows(config.out).values())
    assert read_metrics(config.out / "metrics.jsonl")[-1]["num_bad_rows"] == 1
    print_summary("supervised", summary)
    assert f"2 bad rows in {config.out / 'bad_rows.jsonl'} -> " in capsys.readouterr().out
    strict = replace(
        config, out=tmp_path / "strict", loader=LoaderOptions(verify=True, bad_images="raise", num_threads=1)
    )
    with pytest.raises(LoaderError, match="CRC-32"):
        supervised.run(strict)


@dataclass(frozen=True)
class Damaged:
    """A pack with three damaged images, which only predicting and measuring read, and a run on it."""

    pack: Path
    run: Path
    rows: list[int]


@pytest.fixture(scope="module")
def damaged(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(few_digits, folder / "pack")
    pack = open_pack(folder / "pack")
    few = FEW | {"batch_size": 32, "epochs": 1, "labels_per_class": None, "test_split": ""}
    supervised.run(supervised.Config(pack=pack.path, out=folder / "run", **few))
    rows: list[int] = pack.split("unlabeled").rows(np.array([0, 30, 63])).tolist()
    damage(pack, rows)
    return Damaged(pack.path, folder / "run", rows)


def common(damaged: Damaged, out: Path, **more: Any) -> dict[str, Any]:
    return {"pack": damaged.pack, "out": out, "loader": VERIFIED, **more}


def few(damaged: Damaged, out: Path, **more: Any) -> dict[str, Any]:
    small = FEW | {"epochs": 1, "labels_per_class": None, "batch_size": 32, "test_split": ""}
    return small | common(damaged, out, init=damaged.run, **more)


def evaluated(damaged: Damaged, out: Path) -> Path:
    options = common(damaged, out, split="unlabeled", allow_leak=True)
    result, _ = evaluate.evaluate(evaluate.Config(run=damaged.run, **options))
    assert not set(result.index.tolist()) & set(damaged.rows)
    return out


def asked(damaged: Damaged, out: Path) -> Path:
    config = active.Config(run=damaged.run, clusters=4, per_cluster=2, **common(damaged, out))
    active.run(config)
    return out


def labelled_for_good(damaged: Damaged, out: Path) -> Path:
    config = few(damaged, out, mode="permanent", cycles=1, first_epochs=1, threshold=0.0)
    pseudo_label.run_cycles(pseudo_label.Config(**config), open_pack(damaged.pack))
    return out


def trained_in_rounds(damaged: Damaged, out: Path) -> Path:
    self_training.run(self_training.Config(**few(damaged, out, per_class=(2,), true_epochs=1)))
    return out


def chained(damaged: Damaged, out: Path) -> Path:
    chain = pipeline.Chain(pipeline.Config(**common(damaged, out, resolution=16, test_split="train")))
    chain.best = damaged.run
    pipeline.pseudo_labels(chain)
    return out


def transferred(damaged: Damaged, out: Path, method: transfer.Method) -> Path:
    tuning = replace(transfer.PRETRAINED, steps=1)
    options = {"init": damaged.run, "labels_per_class": (2,), "seeds": (0,), "pretrained": tuning}
    options |= {"test_split": "unlabeled", "beside_scratch": False, "method": method, "allow_leak": True}
    transfer.run(transfer.Config(**common(damaged, out, **options)))
    return out


def stopped_early(damaged: Damaged, out: Path) -> Path:
    """Run transfer with validation images; return the folder of the training that they end early."""
    tuning = replace(transfer.PRETRAINED, steps=1)
    options = {"init": damaged.run, "labels_per_class": (2,), "seeds": (0,), "pretrained": tuning}
    options |= {
        "validation_split": "unlabeled",
        "test_split": "train",
        "beside_scratch": False,
        "patience": 1,
        "allow_leak": True,
    }
    transfer.run(transfer.Config(**common(damaged, out, **options)))
    return out / "pretrained-2-labels-seed-0"


def measured_frozen(damaged: Damaged, out: Path) -> Path:
    shutil.copytree(damaged.run, out)
    options = {"test_split": "unlabeled", "untrained": False, "neighbours": 3, "allow_leak": True}
    config = frozen.Config(run=out, pack=damaged.pack, loader=VERIFIED, **options)
    frozen.evaluate(config)
    assert read_bad_rows(out) == {}, "the run's own names are of its own pack"
    return out / "evaluation"


def probed(damaged: Damaged, out: Path) -> Path:
    options = {"backbone": "test_resnet", "resolution": 16, "batch_size": 32, "epochs": 1, "trackers": ()}
    options |= {"projector": (8, 8), "warmup_epochs": 0.0, "progress": False}
    options |= {"split": "train", "probe_every_epochs": 1, "probe_splits": ("train", "unlabeled")}
    options |= {"allow_leak": True}
    summary = barlow.run(barlow.Config(**common(damaged, out, **options)))
    assert summary.backbone.parent == out
    return out


def clustered(damaged: Damaged, out: Path) -> Path:
    options = {"backbone": "test_resnet", "resolution": 16, "batch_size": 64}
    config = clustering.Config(**common(damaged, out, **options))
    loaders = clustering.PretrainingLoaders(config, ())
    loader = loaders.in_order(loaders.pack.split("unlabeled"), VERIFIED)
    with loader:
        recipe = clustering.DeepCluster(replace(config, num_clusters=3), loader, len(open_pack(damaged.pack)))
        with torch.no_grad():
            recipe.begin_epoch(0)
    return out


@pytest.mark.parametrize(
    "command",
    [
        evaluated,
        asked,
        labelled_for_good,
        trained_in_rounds,
        chained,
        lambda damaged, out: transferred(damaged, out, "frozen"),
        lambda damaged, out: transferred(damaged, out, "knn"),
        stopped_early,
        measured_frozen,
        probed,
        clustered,
    ],
)
def test_damaged_images_of_predictions_and_measurements_are_reported(
    command: Callable[[Damaged, Path], Path], damaged: Damaged, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    folder = command(damaged, out)
    assert sorted(read_bad_rows(folder)) == damaged.rows
    assert all("CRC-32" in reason for reason in read_bad_rows(folder).values())
    assert ", 3 bad rows in " in describe_bad_rows(out)


def test_results_that_are_replaced_name_their_own_bad_rows(
    damaged: Damaged, few_digits: Path, tmp_path: Path
) -> None:
    out = evaluated(damaged, tmp_path / "out")
    mended = replace(damaged, pack=few_digits)
    options = common(mended, out, split="unlabeled", allow_leak=True)
    config = evaluate.Config(run=damaged.run, **options)
    assert len(evaluate.evaluate(config)[0].index) == 64
    assert read_bad_rows(out) == {}


def test_the_options_stand_on_the_command_line() -> None:
    options = ["--pack", "p", "--out", "o", "--verify", "--bad-images", "raise", "--timeout-s", "9"]
    config = tyro.cli(barlow.Config, args=[*options, "--window", "3", "--on-non-finite", "skip"])
    assert config.loader == LoaderOptions(verify=True, bad_images="raise", timeout_s=9.0, window=3)
    assert config.loop_config().on_non_finite == "skip"
