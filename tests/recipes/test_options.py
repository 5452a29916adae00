"""Impossible options end in one line of error for every recipe, and never in a traceback."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.nets.classifier import Classifier, save_classifier
from engine.nets.layers import Layer, read_layer
from engine.train.distributed import make_accelerator
from loaders.common.errors import UserError, run_command
from loaders.common.files import write_atomic
from loaders.packs import LabelTable
from loaders.views.evaluation import EvaluationView
from recipes import (
    active,
    barlow,
    fixmatch,
    jigsaw,
    pipeline,
    self_training,
    siamese_vae,
    supervised,
    transfer,
    vae,
)
from recipes import evaluate as measured
from tests.recipes.labelled import FEW
from tools import bench_guarantees, compare_methods
from tools import probe as frozen

PATHS = {"pack": Path("pack"), "out": Path("out")}
METHODS = {"family": "selfsup", "budget_s": 1.0}
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (barlow, {"seed": -1}, "seed: expected a whole number below 2\\*\\*62, at least 0, found -1"),
    (barlow, {"seed": 2**70}, "seed: expected a whole number"),
    (barlow, {"redundancy_weight": float("nan")}, "redundancy_weight: expected a finite number below"),
    (barlow, {"projector": (8, 0)}, "projector: expected more than 0"),
    (barlow, {"max_steps": 0}, "max_steps: expected more than 0"),
    (supervised, {"lr": float("-inf")}, "lr: expected a finite number below 2\\*\\*127, at least 0"),
    (fixmatch, {"mu": 0}, "mu: expected more than 0"),
    (jigsaw, {"tile_features": 0}, "tile_features: expected more than 0"),
    (vae, {"beta": -1.0}, "beta: expected a finite number below 2\\*\\*127, at least 0"),
    (siamese_vae, {"decoder_width": 0}, "decoder_width: expected more than 0"),
    (transfer, {"init": Path("run"), "seeds": (-1,)}, "seeds: expected a whole number"),
    (active, {"resolution": 0}, "resolution: expected more than 0"),
    (pipeline, {"rounds": pipeline.Rounds(top_k=0)}, "top_k: expected more than 0"),
    (measured, {"run": Path("run"), "sizes": (0,)}, "sizes: expected more than 0"),
    (supervised, {"lr": 1e300}, "lr: expected a finite number below 2\\*\\*127, at least 0, found 1e\\+300"),
    (barlow, {"batch_size": 1}, "batch_size: expected 2 or more, .* found 1"),
    (active, {"cycle": 2**31}, "cycle: expected a whole number from 0 to 2147483647, found 2147483648"),
    (transfer, {"init": Path("run"), "seeds": (0, 0)}, "seeds: expected one or more different values"),
    (frozen, {"run": Path("run"), "temperature": 0.0}, "temperature: expected more than 0"),
    (frozen, {"run": Path("run"), "inverse_penalty": float("nan")}, "inverse_penalty: expected a finite"),
    (compare_methods, METHODS | {"budget_s": float("nan")}, "budget_s: expected a finite number"),
    (compare_methods, METHODS | {"seeds": (-1,)}, "seeds: expected a whole number"),
    (self_training, {"keep_head": True}, "keep_head: expected False"),
]


def has(command: Any, name: str) -> bool:
    return name in {field.name for field in fields(command.Config)}


@pytest.mark.parametrize(("recipe", "changes", "message"), WRONG)
def test_numbers_that_make_no_run_are_refused(recipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.Config(**{name: path for name, path in PATHS.items() if has(recipe, name)}, **changes)


def test_a_benchmark_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="runs: expected more than 0"):
        bench_guarantees.Config(Path("pack"), runs=0)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UserError, match=r"trackers: expected one or more of .*tensorboard.*, found nope"):
        make_accelerator("no", None, ("nope",))


def test_what_an_optimizer_does_not_take_is_refused(few_digits: Path, tmp_path: Path) -> None:
    config = barlow.Config(
        pack=few_digits, out=tmp_path / "run", backbone="test_resnet", resolution=16, batch_size=32,
        projector=(8, 8), trust=0.0, trackers=(), progress=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="optimizer: LARS: expected"):
        barlow.run(config)


def refusal(main: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; return its one line of error."""
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_wrong_value_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is not the box in which tyro prints its own errors."""
    monkeypatch.setattr("sys.argv", ["evaluate", "--run", "r", "--pack", "p", "--out", "o", "--crop", "2"])
    assert "crop: expected a share, at most 1, found 2.0" in refusal(measured.main, capsys)
    options = ["--pack", "p", "--init", "r", "--out", "o", "--pretrained.lr-backbone", "-1"]
    monkeypatch.setattr("sys.argv", ["transfer", *options])
    assert "lr_backbone: expected a finite number" in refusal(transfer.main, capsys)


def test_memory_that_runs_out_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Unable to allocate" in refusal(lambda: len(np.empty(2**55)), capsys)


def test_a_file_in_place_of_the_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    paths = {"pack": tmp_path / "none", "out": tmp_path / "file" / "inside"}
    commands = (
        lambda: active.run(active.Config(**paths)),
        lambda: measured.evaluate(measured.Config(run=tmp_path, **paths)),
        lambda: pipeline.run(pipeline.Config(**paths)),
    )
    for command in commands:
        with pytest.raises(UserError, match=r"out: expected a folder at .*inside, found the file .*file;"):
            command()


def test_a_classifier_of_other_classes_is_refused(few_digits: Path, tmp_path: Path) -> None:
    """Its predictions would get the names of the wrong classes."""
    view, run, out = EvaluationView.usual(16), tmp_path / "run", tmp_path / "out"
    run.mkdir()
    save_classifier(
        run, Classifier(build_backbone("test_resnet", 16), "test_resnet", view, "abcdefgh"), "raw"
    )
    refused = (
        r"classes: expected the 8 of .*, found 8 in the pack: without 'a', 'b', 'c' and 5 more, with '0',"
    )
    for command in (
        lambda: active.run(active.Config(pack=few_digits, out=out, run=run)),
        lambda: measured.evaluate(measured.Config(pack=few_digits, out=out, run=run, split="train")),
        lambda: self_training.run(
            self_training.Config(pack=few_digits, out=out, init=run, **FEW | {"test_split": ""})
        ),
        lambda: supervised.run(
            supervised.Config(pack=few_digits, out=out, init=run, keep_head=True, **FEW | {"test_split": ""})
        ),
    ):
        with pytest.raises(UserError, match=refused):
            command()
        assert {path.name for path in out.glob("*")} <= {"lock"}


def test_no_label_table_takes_a_cycle_that_it_cannot_hold() -> None:
    with pytest.raises(UserError, match="label table cycle: expected a whole number from 0 to 2147483647"):
        LabelTable.of(np.arange(1), np.arange(1), 2, cycle=2**31)


def test_a_mistake_of_a_late_stage_is_found_before_the_first(few_digits: Path, tmp_path: Path) -> None:
    config = pipeline.Config(pack=few_digits, out=tmp_path / "out", test_split="train", allow_leak=True)
    late: list[tuple[dict[str, Any], str]] = [
        ({"unlabeled_split": "nope"}, "no split 'nope'"),
        ({"test_split": ""}, "no split ''"),
        ({"rounds": pipeline.Rounds(per_class=())}, "per_class: expected one or more numbers, found none"),
        ({"fixmatch": pipeline.SemiSupervised(threshold=2.0)}, "threshold: expected a share"),
    ]
    for changes, message in late:
        with pytest.raises(UserError, match=message):
            pipeline.run(replace(config, **changes))
    assert not config.out.exists()


def test_a_chain_without_labels_so_far_has_no_classifier_to_keep(tmp_path: Path) -> None:
    chain = pipeline.Chain(pipeline.Config(**PATHS))
    chain.best = tmp_path
    assert not pipeline.fixmatch_config(chain, "fixmatch", ()).keep_head
    for stage in (pipeline.active_stage, pipeline.tta):
        with pytest.raises(UserError, match="expected a stage with labels before it, found none"):
            stage(chain)


def test_a_folder_in_which_a_mistake_came_before_any_work_takes_the_corrected_command(
    few_digits: Path, tmp_path: Path
) -> None:
    config = self_training.Config(
        pack=few_digits, out=tmp_path / "out", unlabeled_splits=("nope",), **FEW | {"test_split": ""}
    )
    with pytest.raises(UserError, match="no split 'nope'"):
        self_training.run(config)
    assert [path.name for path in config.out.iterdir()] == ["lock"]
    with pytest.raises(UserError, match="no split 'other'"):
        self_training.run(replace(config, unlabeled_splits=("other",)))
    with pytest.raises(UserError, match=r"expected a run at .*, found no weights"):
        self_training.run(replace(config, out=tmp_path / "new", init=tmp_path))
    assert not (tmp_path / "new").exists(), "the start is looked at before the folder is made"


def test_a_layer_gives_no_larger_map_than_its_own() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(UserError, match="layer 0: expected a side up to 8, its map's own, found 10000"):
        read_layer(network, torch.zeros(1, 3, 8, 8), Layer("0", 10000))


def test_a_file_that_cannot_take_its_name_leaves_none_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
