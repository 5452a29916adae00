"""Trackers that are not installed are refused at once; views and weights go to those that can show them."""

import os
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from engine.train import trackers
from engine.train.trackers import begin_trackers, check_trackers, log_views, log_weights, prepare_trackers
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError


def test_a_tracker_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from recipes.supervised import Config

    assert set(trackers._NEEDS) == set(LOGGER_TYPE_TO_CLASS)
    check_trackers(("tensorboard", "all"))
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError, match="found wandb; pip install wandb, or leave it out"):
        Config(pack=tmp_path, out=tmp_path, trackers=("tensorboard", "wandb"))


def test_wandb_asks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    prepare_trackers(("tensorboard",))
    assert "WANDB_MODE" not in os.environ
    for name in ("wandb", "all"):  # accelerate replaces "all" by every tracker that is installed
        prepare_trackers((name,))
        assert os.environ["WANDB_MODE"] == "offline"
        assert list(tmp_path.iterdir()) == [], "the run has not claimed its folder yet"
        monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    prepare_trackers(("wandb",))
    assert "WANDB_MODE" not in os.environ


class Unreachable(Exception):
    """The error that W&B raises if it has a key but no network connection."""

    __module__ = "wandb.errors"


def offered(names: list[str], init: Any) -> Any:
    """Return a stand-in for the part of an Accelerator that starts trackers."""
    project = SimpleNamespace(logging_dir="")
    return SimpleNamespace(log_with=names, init_trackers=init, trackers=[], project_configuration=project)


@pytest.mark.parametrize("mode", ["online", "unreachable", "offline"])
def test_wandb_lies_in_the_run_folder_and_goes_on_without_a_network(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if mode == "offline":
        monkeypatch.setenv("WANDB_MODE", mode)
    begun: list[Any] = []

    def init(name: str, init_kwargs: Any = None) -> None:
        """Start the trackers as accelerate does, which lists all before it starts any."""
        begun.append(init_kwargs)
        assert accelerator.trackers == []
        accelerator.trackers += [SimpleNamespace(finish=lambda: None), SimpleNamespace()]
        if mode == "unreachable" and len(begun) == 1:
            assert Path(init_kwargs["wandb"]["dir"]).is_dir()
            raise Unreachable("timed out")

    accelerator = offered(["tensorboard", "wandb"], init)
    begin_trackers(accelerator, "barlow", tmp_path / mode)
    retried = {"mode": "offline"} if mode == "unreachable" else {}
    expected = {"dir": str(tmp_path / mode / "trackers"), "name": mode, **retried}
    assert begun[-1] == {"wandb": expected}
    assert len(accelerator.trackers) == 2
    assert os.environ.get("WANDB_MODE") == (None if mode == "online" else "offline")
    said = capsys.readouterr().err
    assert ("cannot be reached (timed out)" in said) == (mode == "unreachable")
    assert (f"keeps the run in {tmp_path / mode / 'trackers' / 'wandb'}" in said) == (mode != "online")
    accelerator.log_with, accelerator.trackers = ["tensorboard"], []
    begin_trackers(accelerator, "barlow", tmp_path / "none")
    assert begun[-1] is None
    assert not (tmp_path / "none").exists()


def test_an_error_that_is_not_of_the_network_is_raised(tmp_path: Path) -> None:
    def init(name: str, init_kwargs: Any) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        begin_trackers(offered(["wandb"], init), "x", tmp_path)


def test_each_training_of_a_process_logs_into_its_own_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from engine.train.distributed import make_accelerator

    accelerator = make_accelerator("no", tmp_path, ("tensorboard",))
    for step, phase in enumerate(("start", "cycle-1")):
        begin_trackers(accelerator, "fine_tuning", tmp_path / phase)
        accelerator.log({"loss": 1.0}, step=step)
    accelerator.end_training()
    assert len(list(tmp_path.rglob("events.*"))) == 2
    for step, phase in enumerate(("start", "cycle-1")):
        found = EventAccumulator(str(tmp_path / phase / "trackers" / "fine_tuning"))
        found.Reload()
        assert [event.step for event in found.Scalars("loss")] == [step]


def test_views_and_weights_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = Batch(
        (torch.zeros(20, 3, 8, 8), torch.randn(20, 3, 6, 6)), None, torch.arange(20), torch.ones(20)
    )
    tracker = TensorBoardTracker("run", tmp_path)
    tracker.start()
    accelerator = SimpleNamespace(trackers=[tracker], is_main_process=True)
    log_views(accelerator, PairedBatch(plain, plain), 0, {"mean": (0.8,) * 3, "std": (0.1,) * 3})
    network = torch.nn.Linear(300, 300)
    with torch.no_grad():
        network.weight[0, 0], network.bias[:] = float("nan"), float("inf")
    for step in range(1, 42):
        log_weights(accelerator, network, step, 41)
    with torch.no_grad():
        network.weight.fill_(1e30)  # like diverged weights, beyond tensorboard's histogram bins
    log_weights(accelerator, network, 42, 42)
    tracker.finish()
    found = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0, "histograms": 0})
    found.Reload()
    assert sorted(found.Tags()["images"]) == ["views/a", "views/b"]
    gray = Image.open(BytesIO(found.Images("views/a")[0].encoded_image_string))
    assert gray.getpixel((0, 0)) == (204, 204, 204), "zero is the mean of the run's own views"
    assert found.Tags()["histograms"] == ["weights/weight"]
    shown = found.Histograms("weights/weight")
    assert [event.step for event in shown] == [*range(3, 41, 3), 41]
    assert 40_000 < shown[0].histogram_value.num <= 1 << 16
