"""What the tests of all recipes with labels share: a small run on the digits, and the checks of any run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from engine.classifier_recipe import ClassifierConfig, ClassifierSummary
from engine.metrics import read_metrics

ROOT = Path(__file__).parents[2]

FEW: dict[str, Any] = {
    "backbone": "tiny_resnet",
    "resolution": 32,
    "labels_per_class": 4,
    "batch_size": 20,
    "epochs": 4,
    "flip_p": 0.0,
    "num_threads": 1,
    "log_every": 1,
    "trackers": (),
    "progress": False,
}
"""40 labels, digits are not mirrored."""


def check_exact_runs(
    config: Any, run: Callable[[Any], ClassifierSummary], tmp_path: Path, steps: int
) -> None:
    """Two runs end in the same bytes, and so does one that was broken off and resumed."""
    names = ("classifier.safetensors", "classifier-ema.safetensors", "accuracy.json")

    def left_by(out: Path) -> dict[str, bytes]:
        return {name: (out / name).read_bytes() for name in names if (out / name).exists()}

    whole = run(replace(config, max_steps=steps))
    assert whole.train.step == steps
    run(replace(config, out=tmp_path / "half", max_steps=steps // 2))
    resumed = run(replace(config, out=tmp_path / "half", max_steps=steps, resume=True, num_threads=2))
    assert len(left_by(whole.out)) >= 2
    assert left_by(resumed.out) == left_by(whole.out)
    again = run(replace(config, out=tmp_path / "again", max_steps=steps))
    assert left_by(again.out) == left_by(whole.out)


def command_line(name: str, config: ClassifierConfig) -> list[str]:
    """The command that gives `config`."""
    arguments = [str(ROOT / "recipes" / f"{name}.py"), "--trackers", "--no-progress"]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in ("trackers", "progress") or value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def launch(num_processes: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a recipe's command line under accelerate's launcher."""
    prefix = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *prefix, "--main_process_port", "0", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def check_two_processes(
    name: str, config: Any, run: Callable[[Any], ClassifierSummary], tmp_path: Path, steps: int = 3
) -> None:
    """The losses and the accuracy of two processes are those of one, up to rounding."""
    two = replace(config, out=tmp_path / "two", max_steps=steps)
    done = launch(2, command_line(name, two))
    assert done.returncode == 0, done.stderr
    one = run(replace(config, out=tmp_path / "one", max_steps=steps))
    expected = read_metrics(one.out / "metrics.jsonl")
    found = read_metrics(two.out / "metrics.jsonl")
    assert len(found) == len(expected) == steps
    for record, reference in zip(found, expected, strict=True):
        for key in reference.keys() - {"img_per_s", "wait_share"}:
            assert record[key] == pytest.approx(reference[key], rel=5e-3, abs=1e-4), key
