"""Child processes of a tool: none blocks, all end together with their children, and all times count."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.loaders.packs.inputs import class_tree, write_tree
from tools import bench_packing
from tools.bench import process
from tools.bench.process import environment, last_line, private, proportional, versions, watched

LOUD = "import sys\nprint('x' * 200_000)\nprint('y' * 200_000, file=sys.stderr)\n"
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
time.sleep(600)
"""


def is_over(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    psutil.Process(pid).kill()
    return False


def test_much_output_blocks_nobody_and_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    work = "x = bytearray(60_000_000)\nimport time\ntime.sleep(0.4)\nsum(range(1_000_000))\nsys.exit(3)"
    used = watched([sys.executable, "-c", LOUD + work], os.environ, log, 60, sample_s=0.02)
    assert used.code == 3
    assert last_line(log) in ("x" * 200_000, "y" * 200_000)
    assert log.stat().st_size == 400_002
    assert 0.4 < used.seconds < 60
    assert 0.0 < used.cpu_s < 60
    assert 60e6 < used.peak_own_bytes < used.peak_rss_bytes


def test_both_ways_to_count_leave_out_mapped_files(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "file", np.uint8, "w+", shape=(50_000_000,))
    own = psutil.Process()
    before = [count(own)[1] for count in (private, proportional)]
    mapped[:] = 1
    rss = [count(own)[0] for count in (private, proportional)]
    for count, were in zip((private, proportional), before, strict=True):
        assert abs(count(own)[1] - were) < 20e6
    assert min(rss) > 50e6


@pytest.mark.parametrize("by_hand", [False, True])
def test_no_child_outlives_the_limit_or_ctrl_c(by_hand: bool, tmp_path: Path) -> None:
    told = tmp_path / "pid"

    def count(member: psutil.Process) -> tuple[int, int]:
        if by_hand and told.exists() and told.read_text():
            raise KeyboardInterrupt
        return 0, 0

    command = [sys.executable, "-c", PARENT, str(told)]
    if by_hand:
        with pytest.raises(KeyboardInterrupt):
            watched(command, os.environ, tmp_path / "log", 60, sample_s=0.02, memory=count)
    else:
        assert watched(command, os.environ, tmp_path / "log", 1.5).code < 0
    assert is_over(int(told.read_text()))


def test_the_environment_says_where_the_project_is_and_how_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert environment()["PYTHONPATH"] == os.pathsep.join([str(process.ROOT), "/elsewhere"])
    assert environment()["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert {environment(3)[name] for name in process.THREADS} == {"3"}


def test_versions_are_of_what_is_there() -> None:
    assert versions(("numpy", "no-such-library")) == {"numpy": np.__version__}


def packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, limit_s: float
) -> dict[str, object]:
    """Measure the plain loop in a process that first runs the code `before`."""
    source = write_tree(tmp_path / "in", class_tree(1, 2))
    monkeypatch.setattr(bench_packing, "_CHILD", before + bench_packing._CHILD)
    monkeypatch.setattr(bench_packing, "_LIMIT_S", limit_s)
    return bench_packing.measure(bench_packing.Config(source=source), "plain loop", 0, 2)


def test_a_writer_that_says_much_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = packing(tmp_path, monkeypatch, LOUD, 30)
    assert record["status"] == "ok", record
    assert record["written_mb"] > 0  # type: ignore[operator]


def test_a_writer_beyond_the_limit_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "pid"
    record = packing(tmp_path, monkeypatch, PARENT.replace("sys.argv[1]", repr(str(told))), 1.5)
    assert (record["status"], record["reason"]) == ("failed", "exit code -9")
    assert is_over(int(told.read_text()))
