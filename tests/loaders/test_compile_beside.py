"""A kernel that another process compiles is on disk afterwards; where it is, or fails, nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import os
import sys
import time
from pathlib import Path

from loaders import compile_beside
from loaders.kernels.memory import kernel

KIND = os.environ.get("KIND", "")
compile_beside.available_cores = lambda: 1 if KIND == "one core" else 2
compile_beside._LIMIT_S = 1.0 if KIND == "hangs" else 120.0
if KIND == "kept":
    compile_beside._start = None  # nothing can be started
if KIND == "embedded":
    sys.executable = ""
if KIND == "no interpreter":
    sys.executable += "-gone"
if KIND == "odd path":
    sys.path.insert(0, Path("unused"))  # which Python's import passes over

@kernel
def twice(value):
    return 2 * value

def call():
    if __name__ == "beside" and KIND == "fails":
        raise SystemExit(1)
    if __name__ == "beside" and KIND in ("hangs", "raises"):
        time.sleep(600)
    return twice(21)

if __name__ == "__main__":
    import beside  # as the other process sees it

    with compile_beside.compiled_beside(beside.twice, beside.call):
        if KIND == "raises":
            raise SystemExit(7)
    misses = sum(beside.twice.stats.cache_misses.values())
    answer = beside.twice(21)
    stats = beside.twice.stats
    print(answer, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()) - misses)
"""


def run(folder: Path, kind: str = "") -> subprocess.CompletedProcess[str]:
    if not (folder / "beside.py").exists():  # a newer source would be compiled anew
        (folder / "beside.py").write_text(MODULE)
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "KIND": kind, "PYTHONPATH": root, "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(folder / "beside.py")]
    other = folder / "other"  # a folder of the user's, with a module of the same name
    other.mkdir(exist_ok=True)
    (other / "beside.py").write_text("raise SystemExit(1)")
    return subprocess.run(
        command, env=env, cwd=other, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("", "42 1 0"),
        ("odd path", "42 1 0"),
        ("one core", "42 0 1"),
        ("embedded", "42 0 1"),
        ("no interpreter", "42 0 1"),
        ("fails", "42 0 1"),
        ("hangs", "42 0 1"),
    ],
)
def test_what_another_process_compiled_is_loaded(tmp_path: Path, kind: str, found: str) -> None:
    ended = run(tmp_path, kind)
    assert (ended.stdout.strip(), ended.stderr) == (found, "")


def test_what_is_on_disk_is_compiled_by_nobody(tmp_path: Path) -> None:
    run(tmp_path)
    ended = run(tmp_path, "kept")
    assert (ended.stdout.strip(), ended.stderr) == ("42 1 0", "")


def test_an_error_in_the_block_ends_the_other_process(tmp_path: Path) -> None:
    assert run(tmp_path, "raises").returncode == 7
