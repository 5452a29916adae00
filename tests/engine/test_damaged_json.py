"""Files of a run with JSON nested too deeply to parse count as damaged: the error is one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.evaluate.few_labels import read_results
from engine.evaluate.results import read_evaluation
from engine.nets.backbones import load_backbone
from engine.nets.description import METADATA_KEY, read_metadata
from engine.train.classifier_recipe import read_accuracy
from engine.train.run_folder import read_run
from loaders.common.errors import UserError
from tests.engine.synthetic import train_small

DEEP = "[" * 200_000


def test_a_checkpoint_whose_description_is_deep_is_stepped_over(tmp_path: Path, capsys) -> None:
    train_small(tmp_path / "run", checkpoint_every_steps=2, max_steps=4)
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "meta.json").write_text(DEEP)
    train_small(tmp_path / "run", checkpoint_every_steps=2, resume=True, progress=True)
    said = capsys.readouterr().err
    assert "step-00000004 is damaged: meta.json cannot be read (" in said
    assert "resumed step-00000002" in said


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("accuracy.json", read_accuracy),
        ("config.json", read_run),
        ("evaluation.json", read_evaluation),
        ("few_labels.json", read_results),
    ],
)
@pytest.mark.parametrize("content", [DEEP, "{"])
def test_a_damaged_file_of_results_is_one_line(
    tmp_path: Path, name: str, read: Callable[[Path], object], content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is not a.*; "):
        read(tmp_path)


@pytest.mark.parametrize("read", [load_backbone, read_metadata])
@pytest.mark.parametrize("content", [DEEP, "{", "7"])
def test_weights_that_describe_themselves_wrongly_are_one_line(
    tmp_path: Path, read: Callable[[Path], object], content: str
) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, file, metadata={METADATA_KEY: content})
    with pytest.raises(UserError, match=r"network in .*x.safetensors, found one that is not a JSON object"):
        read(file)


@pytest.mark.parametrize("content", [DEEP, '{"recipe": "sm', "[]"])
def test_a_run_whose_configuration_is_damaged_is_kept_by_that_of_a_checkpoint(
    tmp_path: Path, content: str
) -> None:
    out = tmp_path / "run"
    train_small(out, checkpoint_every_steps=2, max_steps=4)
    described = read_run(out)
    (out / "config.json").write_text(content)
    saved = sorted((out / "checkpoints").iterdir())
    (saved[-1] / "rng.safetensors").write_bytes(b"cut")
    copied = rf"config.json is not a run.* \(.*\); to keep the run, copy {saved[-2] / 'meta.json'} there"
    with pytest.raises(UserError, match=copied):
        train_small(out, resume=True)
    with pytest.raises(UserError, match=copied):
        read_run(out)
    shutil.copy(saved[-2] / "meta.json", out / "config.json")
    assert read_run(out)["config"].items() >= {"autocast": "no", "views": "float32"}.items()
    _, summary = train_small(out, resume=True)
    assert summary.step == 6
    assert read_run(out) == {**described, "versions": {}}


def test_without_a_checkpoint_a_damaged_configuration_is_to_be_restored(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="; to keep the run, restore it; otherwise give another folder"):
        train_small(tmp_path, resume=True)
