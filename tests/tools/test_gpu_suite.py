"""The part of the GPU suite that needs no GPU: cases, the interpreter, the end at the line that needs one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tools.gpu import cases

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_suite_runs_up_to_the_first_line_that_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "SPEED_BATCH", 2)
    cases.write(tmp_path / "cases.npz", side=16, count=2)
    out = tmp_path / "out.jsonl"
    command = [ROOT / "tools/gpu_suite.sh", out, tmp_path / "cases.npz", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.stdout == out.read_text()
    assert [line.get("view") for line in lines] == ["weak", "barlow_a", None, None]
    assert all(line["max_of_255"] <= 0.01 for line in lines[:2])
    assert "seconds" in lines[2]
    assert lines[3] == {"group": "machine", "needs": "a CUDA device"}


def test_cases_hold_every_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "SPEED_BATCH", 2)
    cases.write(tmp_path / "cases.npz", side=12, count=2)
    content = np.load(tmp_path / "cases.npz")
    about = json.loads(content["about"].tobytes())
    assert len(about["parity"]) == 14
    assert len(about["speed"]) == 18
    for name, side, _, _ in about["parity"]:
        assert content[f"{name}.views"].shape == (2, 3, side, side)
        assert np.isfinite(content[f"{name}.views"]).all()
