"""The doctor names the slowest stage, and its estimates follow from the times of the stages."""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tools.doctor as doctor
from loaders import LoaderOptions
from loaders.backends.cpu import CpuRenderer
from loaders.common.errors import UserError
from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.packs import Pack
from tests.loaders.packs.inputs import class_tree, jpeg, pack, write_tree
from tests.next_line import read_next_line
from tools.bench import stages

SLOW_S = 0.05


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("doctor")
    return pack(folder / "p", f"train={write_tree(folder / 'in', class_tree(2, 6))}")


def work_on(packed: Pack, **changed) -> stages.Work:
    config = doctor.Config(
        packed.path,
        backbone="test_resnet",
        resolution=16,
        batch_size=4,
        seconds=0.05,
        loader=LoaderOptions(num_threads=1, backend="cpu"),
        **{"device": "cpu", **changed},
    )
    return doctor.make_work(config)


def slowed(function, seconds: float):
    def slow(*args, **kwargs):
        time.sleep(seconds)
        return function(*args, **kwargs)

    return slow


class Mean(nn.Module):
    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * self.gain


# The function in which each stage spends its time, and the delay to add per image or batch.
PLACES = {
    "storage": (stages, "read_row", SLOW_S),
    "decoding": (stages, "decode_row", SLOW_S),
    "views": (CpuRenderer, "_render_view", 4 * SLOW_S),
    "network": (stages.Step, "__call__", 4 * SLOW_S),
}


@pytest.mark.parametrize("stage", list(PLACES))
def test_a_slow_stage_is_named(stage: str, packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_on(packed)
    monkeypatch.setattr(stages, "build_backbone", lambda name, side: Mean())  # takes no time
    owner, name, seconds = PLACES[stage]
    monkeypatch.setattr(owner, name, slowed(getattr(owner, name), seconds))
    found = doctor.diagnose(work)
    assert found.bound == stage, found
    assert found.stages[stage] >= 0.9 * SLOW_S
    assert found.copy == 0.0


def test_only_jpeg_rows_are_decoded(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    work, decoded = work_on(packed), []
    columns = work.split.pack.columns
    encoding = np.where(np.arange(len(packed)) % 3, ENCODING_JPEG, ENCODING_RAW)
    monkeypatch.setattr(work.split.pack, "columns", replace(columns, encoding=encoding))
    monkeypatch.setattr(stages, "decode_row", lambda data: decoded.append(data) or 1)
    assert stages.decoding(work) > 0
    assert len(decoded) == (encoding == ENCODING_JPEG).sum() == 8


def test_a_slow_decoder_ends_at_the_deadline(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(stages, "decode_row", slowed(lambda data: decoded.append(data) or 1, 0.04))
    assert stages.decoding(work_on(packed)) > 0.02  # seconds per image that was decoded
    assert 1 <= len(decoded) < len(packed), "work_on allows 0.05 s"


def diagnosis(**changed: float) -> doctor.Diagnosis:
    values = {"cold": 4e-3, "warm": 1e-5, "decoding": 1e-3, "views": 1e-3, "copy": 0.0, "network": 2e-3}
    return doctor.Diagnosis(**{**values, "together": 4e-3, "shares_cores": True, **changed})


def test_estimates_follow_from_the_stages() -> None:
    shared = diagnosis()
    assert shared.bound == "network"
    assert shared.expected() == pytest.approx(4e-3)
    assert shared.gain(decoding=0.0) == pytest.approx(4 / 3)
    apart = diagnosis(shares_cores=False)
    assert apart.expected() == pytest.approx(2e-3)
    assert apart.gain(decoding=0.0) == pytest.approx(1.0)
    cold = diagnosis(is_cached=False)
    assert cold.bound == "storage"
    assert cold.gain(storage=cold.warm) == pytest.approx(1.0)  # the other stages take as long


def test_remedies_are_named_with_their_gain(tmp_path: Path) -> None:
    files = {f"c/{i}.jpg": jpeg(i, 120, 160) for i in range(4)}
    large = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', files)}")
    found = diagnosis(decoding=8e-3)
    said = dict(doctor.remedies(found, work_on(large)))
    smaller = next(gain for text, gain in said.items() if "--short-side 32 (now 120 px)" in text)
    assert smaller == pytest.approx(11 / (3 + 8 * (32 / 120) ** 2))
    assert list(said.values()) == sorted(said.values(), reverse=True)
    assert not any("twice as fast" in text for text in said)  # the gain would be less than a tenth


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_before_any_work(device: str, packed: Pack) -> None:
    with pytest.raises(UserError, match=rf"^device: expected auto or cpu.*, found '{device}'; name one"):
        work_on(packed, device=device)


def test_the_command(packed: Pack, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    arguments = [packed.path, "--backbone", "test_resnet", "--resolution", 16, "--batch-size", 4]
    arguments += ["--seconds", 0.02, "--recipe", "barlow", "--device", "cpu", "--num-threads", 1]
    monkeypatch.setattr(sys, "argv", ["doctor.py", *map(str, arguments)])
    doctor.main()
    out = capsys.readouterr().out
    for name in ("storage, cold", "storage, warm", "decoding", "views", "network", "together"):
        assert name in out
    assert re.search(r"bottleneck: (storage|decoding|views|network), \d+%", out)
    script, named = read_next_line(out)
    assert (script, named.pack, named.split) == ("recipes/barlow.py", packed.path, "train")
    assert (named.backbone, named.resolution, named.batch_size) == ("test_resnet", 16, 4)
    with pytest.raises(UserError, match="has no split 'none'"):
        work_on(packed, split="none")
