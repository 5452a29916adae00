"""The Barlow Twins recipe: its constants, its networks, and short runs on a pack."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.nets.backbones import load_backbone
from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from engine.train.run_config import RUNTIME_FIELDS
from loaders import LoaderOptions
from loaders.batch import Batch
from loaders.common.errors import UserError, run_command
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from recipes.barlow import BarlowTwins, Config, main, peak_learning_rates, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check
from tests.forked import launch_forked
from tests.recipes.two_processes import barlow_command, barlow_config


def blob(rng: np.random.Generator) -> bytes:
    """Draw a JPEG of a soft coloured spot on a coloured background, so that crops identify the image."""
    y, x = np.mgrid[:32, :32]
    spot = np.exp(-((x - rng.uniform(8, 24)) ** 2 + (y - rng.uniform(8, 24)) ** 2) / rng.uniform(10, 60))
    pixels = rng.uniform(0, 255, 3) * spot[..., None] + rng.uniform(0, 255, 3) * (1 - spot[..., None])
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("barlow")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(48):
        (images / f"{i:03d}.jpg").write_bytes(blob(rng))
    pack_dataset(PackOptions(parse_splits((f"unlabeled={images}",)), folder / "pack", workers=1))
    return folder / "pack"


@pytest.fixture
def config(pack: Path, tmp_path: Path) -> Config:
    return barlow_config(pack, tmp_path / "run")


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.backbone, config.resolution, config.epochs, config.batch_size) == (
        "resnet50",
        224,
        1000,
        2048,
    )
    assert (config.projector, config.redundancy_weight) == ((8192, 8192, 8192), 0.0051)
    assert peak_learning_rates(config) == pytest.approx((0.2 * 8, 0.0048 * 8))
    assert (config.weight_decay, config.momentum, config.trust) == (1e-6, 0.9, 0.001)
    assert (config.warmup_epochs, config.final_lr_factor, config.batchnorm) == (10.0, 0.001, "per_view")


@pytest.mark.parametrize(
    ("batch_size", "lr_weights"),
    [(16, 0.7), (128, 0.7), (256, 0.4), (512, 0.3), (768, 0.3 - 0.05 * 0.5849625), (4096, 0.2), (8192, 0.2)],
)
def test_auto_learning_rates_follow_the_table(batch_size: int, lr_weights: float) -> None:
    config = Config(pack=Path("p"), out=Path("o"), batch_size=batch_size)
    expected = (lr_weights * batch_size / 256, 0.024 * lr_weights * batch_size / 256)
    assert peak_learning_rates(config) == pytest.approx(expected)
    given = replace(config, lr_weights=0.2, lr_vectors=0.0048)
    assert peak_learning_rates(given) == pytest.approx((0.2 * batch_size / 256, 0.0048 * batch_size / 256))


def test_every_parameter_is_in_the_right_group(config: Config) -> None:
    recipe = BarlowTwins(config)
    weights, vectors = recipe.make_optimizer().param_groups
    assert sum(len(g["params"]) for g in (weights, vectors)) == len(list(recipe.parameters()))
    assert all(p.ndim > 1 for p in weights["params"])
    assert (weights["adapt"], weights["weight_decay"], weights["trust"]) == (True, 1e-6, 0.001)
    assert all(p.ndim == 1 for p in vectors["params"])
    assert (vectors["adapt"], vectors["weight_decay"]) == (False, 0.0)
    assert not list(recipe.standardise.parameters())
    of_older_runs = {"leaks", "backend", "loading", "num_threads"}
    assert set(RUNTIME_FIELDS) - of_older_runs <= set(vars(config))


def test_schedule_warms_up_over_epochs(config: Config) -> None:
    factor = BarlowTwins(replace(config, warmup_epochs=2.0)).make_schedule(10, 100)
    assert [factor(s) for s in (0, 10, 20)] == [0.0, 0.5, 1.0]
    assert factor(100) == pytest.approx(0.001)


@pytest.mark.parametrize("batchnorm", ["per_view", "joint"])
def test_statistics_are_of_each_view_or_of_both(config: Config, batchnorm: str) -> None:
    seed_everything(0)
    recipe = BarlowTwins(replace(config, batchnorm=batchnorm))
    bright, dark = torch.randn(8, 3, 32, 32) + 3, torch.randn(8, 3, 32, 32) - 3
    first = next(m for m in recipe.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    calls: list[int] = []
    first.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    rows = torch.arange(8)
    embeddings = recipe.embed(Batch((bright, dark), None, rows, torch.ones(8, dtype=torch.bool)))
    assert calls == ([8, 8] if batchnorm == "per_view" else [16])
    for raw in embeddings:  # either way, the loss needs each view standardised separately
        assert raw.dtype == torch.float32
        z = recipe.standardise(raw)
        torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(0, correction=0), torch.ones(16), atol=1e-2, rtol=0)


def test_step_reports_the_two_terms(config: Config) -> None:
    seed_everything(0)
    views = (torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))
    index = torch.arange(8)
    output = BarlowTwins(config).training_step(Batch(views, None, index, index >= 0), 0)
    terms = output.metrics
    assert float(output.loss.detach()) == pytest.approx(
        float(terms["invariance"] + 0.0051 * terms["redundancy"])
    )
    assert not terms["invariance"].requires_grad


def test_two_runs_are_identical_and_a_resumed_one_too(config: Config, tmp_path: Path) -> None:
    whole = run(config)
    assert (whole.step, whole.total_steps) == (6, 6)
    half = replace(config, out=tmp_path / "half")
    run(replace(half, max_steps=4))
    resumed = run(replace(half, resume=True, loader=LoaderOptions(num_threads=2)))
    assert resumed.backbone.read_bytes() == whole.backbone.read_bytes()
    again = run(replace(config, out=tmp_path / "again"))
    assert again.backbone.read_bytes() == whole.backbone.read_bytes()
    assert load_backbone(config.out).num_features == 96
    stored = json.loads((config.out / "config.json").read_text())
    assert stored["recipe"] == "barlow"
    assert stored["config"]["projector"] == [32, 32, 16]


@pytest.mark.floor
def test_learns_features_of_digits(data: Data, tmp_path: Path) -> None:
    check("barlow_twins", trainings.barlow_twins(data, tmp_path / "run", 0))


def test_another_configuration_does_not_resume(config: Config) -> None:
    run(replace(config, max_steps=1))
    with pytest.raises(UserError, match="backbone = 'test_resnet', but backbone = 'resnet18' was requested"):
        run(replace(config, backbone="resnet18", resume=True))


@pytest.mark.parametrize("launcher", ["forks", pytest.param("accelerate launch", marks=pytest.mark.slow)])
def test_two_launched_processes_equal_one_which_goes_on(
    launcher: str, few_digits: Path, tmp_path: Path
) -> None:
    config = barlow_config(few_digits, tmp_path / "mixed")
    command = barlow_command(config, "--max-steps", "4")
    if launcher == "forks":
        launch_forked(2, *command)
    else:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        done = subprocess.run([*launch, "--main_process_port", "0", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    two = read_metrics(config.out / "metrics.jsonl")
    assert len(two) == 4
    run(replace(config, out=tmp_path / "one"))
    one = read_metrics(tmp_path / "one" / "metrics.jsonl")
    run(replace(config, resume=True))  # one process continues the run of two
    mixed = read_metrics(config.out / "metrics.jsonl")
    assert mixed[:4] == two
    for found, expected in zip(mixed, one, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)


def test_a_mistake_is_one_line_and_exit_code_2(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", barlow_command(config, "--backbone", "resnet17"))
        with pytest.raises(SystemExit) as ended:
            run_command(main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: backbone: ")
    assert "found 'resnet17'; close matches" in line
    assert not config.out.exists(), "nothing half-written is left"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch_size": 64}, "64"),
        ({"pack": Path("/nowhere/pack")}, "/nowhere/pack"),
        ({"split": "odd"}, "odd"),
    ],
)
def test_mistakes_leave_no_run_folder(config: Config, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        run(replace(config, **change))
    assert not config.out.exists()
