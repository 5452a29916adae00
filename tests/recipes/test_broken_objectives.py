"""Every floor test fails when its objective is broken; each objective is broken in at least one way."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.broken import BREAKS, apply, place_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_objective_fails_its_floor(name: str) -> None:
    file, words = BREAKS[name].test
    command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=560", "-p", "tests.recipes.broken"]
    command += ["-k", words, file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLUICE_BREAK": name}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 1, done.stdout[-3000:]
    failures = [line for line in done.stdout.splitlines() if line.startswith("E   ")]
    print(f"{name}: {failures[0] if failures else done.stdout[-500:]}")
    assert any("assert" in line.lower() for line in failures), done.stdout[-3000:]


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_there(name: str) -> None:
    """After a renaming there would be nothing to break; after a change of parameters the break would fail."""
    owner, attribute = place_of(BREAKS[name])
    sound = owner.__dict__[attribute]
    mend = apply(name)
    try:
        broken = owner.__dict__[attribute]
    finally:
        mend()
    if inspect.isfunction(sound) and inspect.isfunction(broken):
        taken = inspect.signature(broken).parameters.values()
        options = any(one.kind is one.VAR_KEYWORD for one in taken)
        assert options or len(taken) == len(inspect.signature(sound).parameters)


def test_every_recipe_is_broken_and_the_table_says_how() -> None:
    recipes = {path.stem for path in (ROOT / "recipes").glob("[a-z]*.py")}
    assert {name.split()[0] for name in BREAKS} == recipes
    lines = (ROOT / "docs" / "broken_objectives.md").read_text().splitlines()
    for name, broken in BREAKS.items():
        file, words = broken.test
        assert f'| {name.split()[0]} | {broken.how} | `{Path(file).name} -k "{words}"` |' in lines
