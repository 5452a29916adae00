"""Every page and file names the same versions of Python, and set-up refuses the others in one line."""

from __future__ import annotations

import runpy
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")


def test_the_versions_are_named_alike() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    prefix = "Programming Language :: Python :: 3."
    named = [line.rpartition(" ")[2] for line in project["project"]["classifiers"] if line.startswith(prefix)]
    assert named == list(VERSIONS)
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == VERSIONS[0]
    assert f"Python {VERSIONS[0]} to {VERSIONS[-1]}," in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("version", "taken"), [((3, 10, 13), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14, 0), False)]
)
def test_setup_refuses_other_versions_in_one_line(
    version: tuple[int, ...],
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ".".join(str(part) for part in version)
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", f"{text} (main)")
    script = str(ROOT / "tools" / "check_python.py")
    if taken:
        runpy.run_path(script)
        return
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(script)
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"setup: expected Python {VERSIONS[0]} to {VERSIONS[-1]}, found {text}; name one")
    assert told.count("\n") == 1
    recipe = (ROOT / "Makefile").read_text()
    assert 0 < recipe.index("tools/check_python.py") < recipe.index("-m venv"), "before anything is made"
