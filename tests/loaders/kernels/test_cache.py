"""The cache of compiled kernels: its folder, when kernels are compiled again, and messages to the user."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest

from loaders.kernels import cache

ROOT = Path(__file__).parents[3]
# `draw_flip` calls `uniform4` of another file; only that file changes.
_DRAW = """
import numpy as np
from loaders.kernels.views.drawing import draw_flip
flips, rows = np.zeros(64, np.bool_), np.arange(64)
draw_flip(0, rows, rows, 0, 1, 0.5, flips)
print(flips.sum())
"""


def drawn(package: Path, kept: Path) -> int:
    env = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(kept)}
    command = [sys.executable, "-c", _DRAW]
    return int(subprocess.run(command, env=env, cwd=kept, check=True, capture_output=True, text=True).stdout)


def test_an_edited_part_of_a_kernel_takes_effect_at_the_next_start(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "loaders", tmp_path / "loaders", ignore=shutil.ignore_patterns("__pycache__"))
    assert 16 < drawn(tmp_path, tmp_path) < 48
    source = tmp_path / "loaders" / "kernels" / "random.py"
    whole = "return a * _UNIT, b * _UNIT, c * _UNIT, d * _UNIT"
    assert whole in source.read_text()
    source.write_text(source.read_text().replace(whole, "return 0.0, 0.0, 0.0, 0.0"))
    assert drawn(tmp_path, tmp_path) == 64
    assert len(list((tmp_path / "sluice" / "kernels").iterdir())) == 2


def test_kernels_are_made_of_nothing_that_the_name_of_the_folder_does_not_tell() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for path in (ROOT / "loaders" / "kernels").rglob("*.py")
        if path.name != "cache.py" and path.parent.name != "device"  # Triton has its own cache
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        if (node.module or "").startswith("loaders") and not (node.module or "").startswith("loaders.kernels")
    ]
    assert not wrong, wrong


def test_no_private_name_of_the_compiler_is_used() -> None:
    allowed = {"numba", "numba.extending", "llvmlite", "llvmlite.binding", "llvmlite.ir"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for layer in ("loaders", "engine", "recipes", "tools")
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] in ("numba", "llvmlite") and name not in allowed
    ]
    assert not wrong, wrong


def test_other_users_of_numba_keep_their_own_folder() -> None:
    before = numba.config.CACHE_DIR

    @cache.kernel
    def ours(x):
        return x

    @numba.njit(cache=True)
    def theirs(x):
        return x

    assert before == numba.config.CACHE_DIR
    assert str(cache.FOLDER) in ours.stats.cache_path
    assert str(cache.FOLDER) not in theirs.stats.cache_path


def test_what_was_not_used_for_a_month_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "config", SimpleNamespace(CACHE_DIR=str(tmp_path)))
    kernels = tmp_path / "sluice" / "kernels"
    for name, days in (("old", 31), ("recent", 29)):
        (kernels / name).mkdir(parents=True)
        when = (kernels / name).stat().st_mtime - days * 86_400
        os.utime(kernels / name, (when, when))
    mine = cache._open_folder()
    assert mine is not None
    assert {path.name for path in kernels.iterdir()} == {"recent", mine.name}
    os.utime(mine, (0, 0))  # using an old folder marks it as recent
    assert cache._open_folder() == mine
    assert mine.stat().st_mtime > 0


def test_where_nothing_can_be_kept_kernels_run_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(cache, "config", SimpleNamespace(CACHE_DIR=str(tmp_path / "file")))
    assert cache._open_folder() is None
    monkeypatch.setattr(cache, "FOLDER", None)
    doubled = cache._kept(nogil=True)(lambda x: 2 * x)
    with cache.first_use("doubling"):
        assert doubled(21) == 42
    assert "compiling doubling, at every start" in capsys.readouterr().err


def test_compiling_is_told_once_and_done_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "FOLDER", tmp_path)
    with cache.first_use("decoding", "views as float32"):
        held = subprocess.run(["flock", "--nonblock", tmp_path / "lock", "true"], check=False)
        assert held.returncode == 1, "another process would compile the same"
    assert capsys.readouterr().err == "compiling decoding, views as float32, once for this machine\n"
    with cache.first_use("decoding", "Cutout"):
        pass
    assert capsys.readouterr().err == "compiling Cutout, once for this machine\n"
    with cache.first_use("decoding", "Cutout"):
        assert subprocess.run(["flock", "--nonblock", tmp_path / "lock", "true"], check=False).returncode == 0
    assert capsys.readouterr().err == ""


def test_what_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FOLDER", tmp_path)
    with pytest.raises(ZeroDivisionError), cache.first_use("dividing"):
        raise ZeroDivisionError
    assert not list(tmp_path.glob("*.done"))
