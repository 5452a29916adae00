"""The device of networks, with a simulated GPU: --device cpu keeps everything on the processor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import device
from engine.device import device_of_process, has_gpu, taken_device
from engine.train import autocast, distributed
from engine.train.distributed import make_accelerator
from loaders.common.errors import UserError
from tests.forked import run_forked

NONE = "device: expected a GPU for cuda, found none; give --device cpu, or fix the driver"
SWITCHED = "device: expected auto or cpu with ACCELERATE_USE_CPU, found cuda; change one of them"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the machine has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


@pytest.mark.parametrize(
    ("asked", "found", "switch", "expected"),
    [
        ("auto", True, "", "cuda"),
        ("auto", True, "false", "cuda"),
        ("auto", True, "true", "cpu"),
        ("auto", False, "", "cpu"),
        ("cpu", True, "", "cpu"),
        ("cuda", True, "", "cuda"),
        ("cuda", False, "", NONE),
        ("cuda", True, "1", SWITCHED),
        ("gpu", True, "", "device: expected one of auto, cpu, cuda, found 'gpu'; choose one of them"),
    ],
)
def test_one_rule_says_where(
    monkeypatch: pytest.MonkeyPatch, asked: Any, found: bool, switch: str, expected: str
) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: found)
    monkeypatch.setenv("ACCELERATE_USE_CPU", switch)
    if ":" not in expected:
        assert taken_device(asked) == expected
        return
    with pytest.raises(UserError) as refused:
        taken_device(asked)
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


def test_a_switch_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU: expected true or false, found 'maybe'"):
        taken_device("cpu")


def test_torch_is_asked_where_it_is_loaded_or_a_driver_is_there(gpu: None, monkeypatch: Any) -> None:
    assert has_gpu()
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert not has_gpu()
    assert "torch" not in sys.modules


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_on_a_processor_that_is_asked_for_nothing_follows_the_gpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_bfloat16: bool
) -> None:
    """With --device cpu a GPU decides neither the precision, new or recorded, nor TF32 nor cuDNN settings."""
    taken: dict[str, Any] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: taken.update(products=name))
    monkeypatch.setattr(distributed, "Accelerator", lambda **options: taken.update(options))
    make_accelerator(device="cpu")
    assert (taken["cpu"], taken["mixed_precision"]) == (True, "bf16" if has_bfloat16 else "no")
    assert "products" not in taken
    assert not torch.backends.cudnn.benchmark
    (tmp_path / "config.json").write_text(json.dumps({"config": {"precision": "auto"}}))
    assert autocast.of_run(tmp_path, "cpu") == "no", "of a run from before it was written"
    assert autocast.of_run(tmp_path) is None
    with pytest.raises(UserError, match="expected bf16 or no on a processor, found fp16"):
        make_accelerator("fp16", device="cpu")


MADE = """
import torch
torch.cuda.is_available = lambda: True
from engine.device import device_of_process, taken_device
from engine.train.distributed import make_accelerator
from engine.train.run_config import on_this_rank
from loaders import LoaderOptions
print(taken_device(), make_accelerator("no", device="cpu").device, device_of_process())
print(on_this_rank(LoaderOptions()).device)
"""


def test_an_accelerator_stays_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do loaders and pages. Run in a separate process, because accelerate keeps its device for good."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    done = run_forked("-c", MADE)
    assert done.stdout.split() == ["cuda", "cpu", "cpu", "cpu"], done.stderr


def test_a_process_that_trains_nothing_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.state.is_initialized", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for found in (True, False):
        monkeypatch.setattr(device, "has_gpu", lambda found=found: found)
        assert device_of_process() == ("cuda" if found else "cpu")


@pytest.mark.parametrize(
    "recipe", ["fixmatch", "transfer", "pipeline", "active", "evaluate", "self_training"]
)
def test_every_recipe_takes_a_device_and_its_loaders_none(recipe: str, tmp_path: Path) -> None:
    """There is one --device, without a second one from `LoaderOptions`; a wrong name exits with code 2."""
    done = run_forked(f"recipes/{recipe}.py", "--help")
    assert done.stdout.count("--device {auto,cpu,cuda}") == 1
    assert "loader.device" not in done.stdout
    wrong = run_forked(f"recipes/{recipe}.py", "--pack", tmp_path, "--out", tmp_path, "--device", "gpu")
    assert wrong.returncode == 2
    assert "--device" in wrong.stderr
    assert "Traceback" not in wrong.stderr
