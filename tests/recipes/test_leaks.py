"""On noise a classifier is right only on images it was trained on; measuring on them is refused or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.evaluate.few_labels import FewLabelResult
from engine.labels.shared_images import account
from engine.report.run_page import leaks_of
from engine.report.sections import leaks_section
from engine.train.classifier_recipe import read_accuracy
from engine.train.run_folder import read_run
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack, open_pack
from recipes import (
    active,
    barlow,
    evaluate,
    fixmatch,
    mean_teacher,
    pipeline,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    temporal_ensembling,
    transfer,
)
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tree
from tests.recipes.labelled import FEW
from tools import label_sweep
from tools import probe as frozen

SHORT: dict[str, Any] = FEW | {"labels_per_class": None, "batch_size": 8, "max_steps": 1}
ROWS = r"found 6 rows of split 'test' among 18 images, such as 'test/c0/000'; .*--allow-leak"


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """`train` has 12 images, `test` 6 others, `seen` 2 others and copies of 2 images of `train`."""
    folder = tmp_path_factory.mktemp("noise")
    write_tree(folder / "train", class_tree(2, 6))
    write_tree(folder / "test", class_tree(2, 3, seed=500))
    copies = {"c0/a.jpg": jpeg(1), "c1/b.jpg": jpeg(103), "c0/c.jpg": jpeg(900), "c1/d.jpg": jpeg(901)}
    write_tree(folder / "seen", copies)
    return pack(folder / "pack", *(f"{name}={folder / name}" for name in ("train", "test", "seen")))


def everything(noise: Pack) -> Path:
    """Write a table of all labels but those of `seen`."""
    path = noise.path / "labels" / "both.parquet"
    noise.labels.of_rows(np.arange(18)).write(path)
    return path


@pytest.fixture(scope="module")
def clean_run(noise: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the labels of `train`, measured on `test`."""
    out = tmp_path_factory.mktemp("clean") / "run"
    supervised.run(supervised.Config(pack=noise.path, out=out, **SHORT))
    return out


@pytest.fixture(scope="module")
def leaky_run(noise: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the labels of `train` and `test`, measured on `test`, which --allow-leak allows."""
    out, tables = tmp_path_factory.mktemp("leaky") / "run", (everything(noise),)
    options = SHORT | {"allow_leak": True, "extra_labels": tables}
    supervised.run(supervised.Config(pack=noise.path, out=out, **options))
    return out


def cycles(config: pseudo_label.Config) -> object:
    return pseudo_label.run_cycles(config, open_pack(config.pack))


def classical(config: pseudo_label.Config) -> object:
    return pseudo_label.run_classical(config, open_pack(config.pack))


RECIPES: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "supervised": (supervised.Config, supervised.run),
    "fixmatch": (fixmatch.Config, fixmatch.run),
    "mean_teacher": (mean_teacher.Config, mean_teacher.run),
    "ssl_gan": (ssl_gan.Config, ssl_gan.run),
    "temporal_ensembling": (temporal_ensembling.Config, temporal_ensembling.run),
    "pseudo_label": (pseudo_label.Config, classical),
    "pseudo_label permanent": (pseudo_label.Config, cycles),
    "self_training": (self_training.Config, self_training.run),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_refuse_labels_of_the_test_split(noise: Pack, tmp_path: Path, name: str) -> None:
    make, run = RECIPES[name]
    options = FEW | {"labels_per_class": None, "extra_labels": (everything(noise),)}
    if name != "supervised":
        options |= {"unlabeled_splits": ("train",)}
    if name == "ssl_gan":
        options |= {"backbone": "gan_discriminator_8"}
    config = make(pack=noise.path, out=tmp_path / "run", **options)
    with pytest.raises(UserError, match="labels: expected no image of split 'test'.*" + ROWS):
        run(config)
    with pytest.raises(UserError, match=r"6 rows of split 'test' among 6 images"):
        run(replace(config, labeled_split="test", extra_labels=()))
    with pytest.raises(
        UserError, match=r"2 copies of rows of split 'seen' among 12 images, such as 'train/c0/001'"
    ):
        run(replace(config, test_split="seen", extra_labels=()))
    assert not config.out.exists()


def test_the_chain_refuses_before_its_first_stage(noise: Pack, tmp_path: Path) -> None:
    config = pipeline.Config(pack=noise.path, out=tmp_path / "out", unlabeled_split="train")
    with pytest.raises(UserError, match=ROWS):
        pipeline.run(replace(config, extra_labels=(everything(noise),)))
    with pytest.raises(UserError, match="2 copies of rows of split 'seen'"):
        pipeline.run(replace(config, test_split="seen"))
    assert not config.out.exists()


def test_a_leak_that_is_allowed_is_named_in_the_run_and_on_its_page(
    noise: Pack, leaky_run: Path, clean_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leaks" not in read_run(clean_run)["config"]
    (leak,) = read_run(leaky_run)["config"]["leaks"]
    assert "6 rows of split 'test' among 18 images" in leak
    assert read_accuracy(leaky_run)["raw"].num_images == 6
    assert leaks_of(read_run(leaky_run), None, None) == [leak]
    assert escape(leak) in leaks_section([leak]).html()
    assert not leaks_section([]).blocks
    again = SHORT | {"allow_leak": True, "extra_labels": (everything(noise),), "resume": True}
    supervised.run(supervised.Config(pack=noise.path, out=leaky_run, **again))
    assert f"allowed by --allow-leak: {leak}" in capsys.readouterr().err
    job = label_sweep.Job(label_sweep.Method("a", "supervised", ()), 0, (1,))
    sweep = label_sweep.Config(noise.path, tmp_path, ("a=supervised",), (1,), (0,))
    (tmp_path / job.folder).mkdir(parents=True)
    (tmp_path / job.folder / "config.json").write_bytes((leaky_run / "config.json").read_bytes())
    label_sweep.write_sweep(sweep, [FewLabelResult("a", 1, 0, 0.5, 6, 1)])
    assert json.loads((tmp_path / "few_labels.json").read_text())["config"]["leaks"] == [leak]


def test_the_labels_behind_a_start_count_too(
    noise: Pack, leaky_run: Path, clean_run: Path, tmp_path: Path
) -> None:
    """A network trained on test labels passes on what it learned from them, through any number of runs."""
    config = supervised.Config(pack=noise.path, out=tmp_path / "run", **SHORT)
    message = r"labels of .*run: expected no image of split 'test'.*" + ROWS
    with pytest.raises(UserError, match=message):
        supervised.run(replace(config, init=leaky_run))
    with pytest.raises(UserError, match=message):
        supervised.run(replace(config, init=leaky_run / "classifier.safetensors"))
    assert not config.out.exists()
    assert account(replace(config, init=clean_run)).leaks == ()
    middle = tmp_path / "middle"
    middle.mkdir()
    described = read_run(clean_run)
    described["config"] |= {"init": str(leaky_run), "labeled_split": "train"}
    (middle / "config.json").write_text(json.dumps(described))
    assert len(account(replace(config, init=middle, allow_leak=True)).leaks) == 1
    described["config"] |= {"init": None, "extra_labels": [str(tmp_path / "gone.parquet")]}
    (middle / "config.json").write_text(json.dumps(described))
    (note,) = account(replace(config, init=middle)).notes
    assert "cannot be compared with split 'test' (no label table at" in note
    described["config"] |= {"init": str(tmp_path / "moved"), "labeled_split": None, "extra_labels": []}
    (middle / "config.json").write_text(json.dumps(described))
    (note,) = account(replace(config, init=middle)).notes
    moved = tmp_path / "moved"
    assert note.startswith(f"{moved}: its labels cannot be compared with split 'test' (no run is")


def test_measuring_a_run_on_its_own_labels_is_refused(
    noise: Pack, clean_run: Path, leaky_run: Path, tmp_path: Path
) -> None:
    config = evaluate.Config(
        run=clean_run, pack=noise.path, out=tmp_path / "tested", loader=LoaderOptions(num_threads=1)
    )
    with pytest.raises(UserError, match=r"labels of .*: expected .* found 12 rows of split 'train' among 12"):
        evaluate.evaluate(replace(config, split="train"))
    with pytest.raises(UserError, match=ROWS):
        evaluate.evaluate(replace(config, run=leaky_run))
    assert not config.out.exists()
    evaluate.evaluate(replace(config, split="train", allow_leak=True, predictions=False))
    written = json.loads((config.out / "classification.json").read_text())
    assert "12 rows of split 'train'" in written["config"]["leaks"][0]
    probe = frozen.Config(
        run=clean_run, pack=noise.path, neighbours=2, untrained=False, loader=LoaderOptions(num_threads=1)
    )
    with pytest.raises(UserError, match=r"train_split: expected no image of split 'test'.*6 rows"):
        frozen.evaluate(replace(probe, train_split="test"))
    with pytest.raises(UserError, match=ROWS):
        frozen.evaluate(replace(probe, run=leaky_run))
    evaluation = frozen.evaluate(replace(probe, train_split="test", allow_leak=True))
    assert "6 rows of split 'test'" in evaluation.config["leaks"][0]
    (clean_run / "evaluation.json").unlink()


def test_transfer_refuses_labels_of_what_it_measures_on(noise: Pack, clean_run: Path, tmp_path: Path) -> None:
    config = transfer.Config(
        pack=noise.path,
        init=clean_run,
        out=tmp_path / "out",
        labels_per_class=(1,),
        seeds=(0,),
        loader=LoaderOptions(num_threads=1),
    )
    with pytest.raises(UserError, match=ROWS):
        transfer.run(replace(config, extra_labels=(everything(noise),)))
    with pytest.raises(UserError, match="2 copies of rows of split 'seen'"):
        transfer.run(replace(config, validation_split="seen"))
    assert not config.out.exists()
    transfer.run(replace(config, test_split="seen", allow_leak=True, method="knn", beside_scratch=False))
    leaks = json.loads((config.out / "few_labels.json").read_text())["config"]["leaks"]
    assert "2 copies of rows of split 'seen' among 12 images" in leaks[0]


def test_the_online_probe_is_held_to_the_same(noise: Pack, tmp_path: Path) -> None:
    options = {"backbone": "test_resnet", "resolution": 16, "batch_size": 8, "epochs": 1, "split": "train"}
    config = barlow.Config(pack=noise.path, out=tmp_path / "run", probe_every_epochs=1, **options)
    with pytest.raises(UserError, match=r"probe_splits: expected no image of split 'seen'.*2 copies"):
        barlow.run(replace(config, probe_splits=("train", "seen")))
    assert not config.out.exists()


def test_unlabelled_images_of_the_test_split_are_allowed_and_told(
    noise: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fixmatch.Config(pack=noise.path, out=tmp_path / "run", unlabeled_splits=("train",), **SHORT)
    assert account(config).notes == ()
    found = account(replace(config, unlabeled_splits=("train", "test")))
    assert found.leaks == ()
    found.say()
    line = "unlabelled images: 6 rows of split 'test' among 18 images, such as 'test/c0/000'; "
    assert capsys.readouterr().err == line + "their true labels are not read\n"


def test_no_image_to_measure_on_is_asked_for(noise: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    config = active.Config(
        pack=noise.path,
        out=noise.path / "ask",
        strategy="random",
        unlabeled_splits=("train", "test"),
        labeled_split="",
    )
    asked = active.choose(config, noise)
    assert asked.row.tolist() == list(range(12))
    assert "not asked for, since measured on: 6 rows and 0 copies of split 'test'" in capsys.readouterr().err
    assert len(active.choose(replace(config, test_split="seen"), noise).row) == 16
    assert len(active.choose(replace(config, test_split=""), noise).row) == 18


def test_a_test_split_without_labels_measures_nothing(noise: Pack, tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree(2, 3))
    write_tree(tmp_path / "flat", {"a.jpg": jpeg(4)})
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"test={tmp_path / 'flat'}")
    with pytest.raises(UserError, match=r"test_split: expected labels in 'test', found none; give another"):
        supervised.run(supervised.Config(pack=packed.path, out=tmp_path / "run", **SHORT))
