"""Processes forked for tests end together, and report errors."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.forked import Forked, launch_forked

RANKS = """
import os, time
if os.environ["RANK"] == "1":
    raise SystemExit("rank 1 has had enough")
time.sleep(600)
"""


def test_a_rank_that_fails_ends_all_with_its_words() -> None:
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="rank 1 has had enough"):
        launch_forked(2, "-c", RANKS)
    assert time.monotonic() - begun < 60, "the other rank sleeps for ten minutes"


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "w").write(str(child.pid))
print("begun", flush=True)
time.sleep(600)
"""


def test_what_a_fork_began_ends_with_it(tmp_path: Path) -> None:
    with Forked("-c", PARENT, tmp_path / "child") as process:
        process.wait_for_lines(1)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child sleeps on"
        time.sleep(0.01)
