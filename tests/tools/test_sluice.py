"""The command `sluice`: it runs every script, advises a method, and is installed by the wheel."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.common.next_step import called
from tools import sluice
from tools.command.advice import ADVICE

ROOT = Path(__file__).parents[2]
LAYERS = ("engine", "loaders", "recipes", "tools")
SCRIPTS = {
    path.relative_to(ROOT).as_posix()
    for folder in ("recipes", "tools")
    for path in (ROOT / folder).glob("*.py")
    if "run_command(main)" in path.read_text() and path.name != "sluice.py"
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, list[str]]]:
    """The scripts that were run, each with the name under which it was called and its arguments."""
    found: list[tuple[str, str | None, list[str]]] = []

    def note(path: str, run_name: str) -> None:
        assert run_name == "__main__"
        found.append((Path(path).relative_to(ROOT).as_posix(), called(), sys.argv[1:]))

    monkeypatch.setattr(runpy, "run_path", note)
    return found


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sluice", *words])
    sluice.main()


@pytest.mark.parametrize(
    ("words", "script", "name"),
    [
        (("pack", "--out", "p"), "tools/pack_dataset.py", "sluice pack"),
        (("verify", "p"), "tools/verify_pack.py", "sluice verify"),
        (("show",), "tools/show_views.py", "sluice show"),
        (("probe", "--help"), "tools/probe.py", "sluice probe"),
        (("report",), "tools/report.py", "sluice report"),
        (("labels", "divide", "--help"), "tools/labels.py", "sluice labels"),
        (("evaluate",), "recipes/evaluate.py", "sluice evaluate"),
        (("active",), "recipes/active.py", "sluice active"),
        (("train", "vicreg", "--pack", "p"), "recipes/vicreg.py", "sluice train vicreg"),
        (("train", "transfer", "--help"), "recipes/transfer.py", "sluice train transfer"),
        (("bench", "loaders"), "tools/bench_loaders.py", "sluice bench loaders"),
        (("write_digits", "--help"), "tools/write_digits.py", "sluice write_digits"),
    ],
)
def test_a_command_is_its_script(
    words: tuple[str, ...],
    script: str,
    name: str,
    ran: list[tuple[str, str | None, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call(monkeypatch, *words)
    assert ran == [(script, name, list(words[len(name.split()) - 1 :]))]
    assert called() is None, "the next program of this process goes by its own name"


def test_every_script_is_one_command() -> None:
    found = [*sluice.commands().values(), *sluice.methods().values(), *sluice.benchmarks().values()]
    assert sorted(path.relative_to(ROOT).as_posix() for path in found) == sorted(SCRIPTS)


def test_a_new_file_is_a_new_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '"""Say {}.\n\nMore."""\nif __name__ == "__main__":\n    run_command(main)\n'
    for name in ("tools/predict.py", "tools/polish.py", "tools/bench_polish.py", "recipes/newest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.format(name))
    (tmp_path / "tools/no_script.py").write_text('"""Helps."""\n')
    monkeypatch.setattr(sluice, "TOOLS", tmp_path / "tools")
    call(monkeypatch, "--help")
    shown = capsys.readouterr().out
    assert "\n  predict  Say tools/predict.py.\n" in shown, "a usual step is listed with what it does"
    assert "\n  polish\n" in shown
    assert "no_script" not in shown
    call(monkeypatch, "bench")
    assert "\n  polish  Say tools/bench_polish.py.\n" in capsys.readouterr().out
    call(monkeypatch, "train")
    assert "\n  newest  Say recipes/newest.py.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("verfy",),
            "command: expected a known command, found 'verfy'; did you mean verify? `sluice --help`",
        ),
        (("trian",), "did you mean train?"),
        (("barlow",), "found 'barlow'; did you mean `sluice train barlow`?"),
        (("loaders",), "found 'loaders'; did you mean `sluice bench loaders`?"),
        (("../recipes/barlow",), "command: expected a known command, found '../recipes/barlow'; "),
        (
            ("train", "vicrg"),
            "method: expected a known method, found 'vicrg'; did you mean vicreg? `sluice",
        ),
        (("train", "bench"), "method: expected a known method, found 'bench'; `sluice train` lists them"),
        (
            ("bench", "lodaers"),
            "benchmark: expected a known benchmark, found 'lodaers'; did you mean loaders?",
        ),
        (("--nonsense",), "found '--nonsense'; `sluice --help` lists them"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_near_one(
    words: tuple[str, ...],
    line: str,
    ran: list[tuple[str, str | None, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        call(monkeypatch, *words)
    assert not ran


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_words_the_steps_are_listed_in_their_order(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *words)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: sluice COMMAND ...\n")
    names = re.findall(r"^  (\w+)(?: |$)", shown, re.M)
    steps = [name for name in sluice.STEPS if name in {*sluice.commands(), "train", "bench"}]
    assert names[: len(steps)] == steps


@pytest.mark.parametrize("words", [("train",), ("train", "--help")])
def test_without_a_method_the_table_and_the_methods_are_shown(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *words)
    shown = capsys.readouterr().out
    for topic in ("labels", "images", "device", "time", "on CIFAR-10"):
        assert topic in shown
    for method in sluice.methods():
        assert re.search(rf"^  {method} +[A-Z]", shown, re.M), method


def test_the_page_has_the_table_that_the_command_prints() -> None:
    page = (ROOT / "docs/choosing.md").read_text()
    rows = ["| by | you have | take | why |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(row)} |" for row in ADVICE]
    assert "\n".join(rows) in page
    named = {name for row in ADVICE for name in re.findall(r"`([a-z_]+)(?: --[^`]*)?`", row.take + row.why)}
    assert named
    assert named <= {*sluice.methods(), *sluice.commands()}
    assert {row.topic for row in ADVICE} == {"labels", "images", "device", "time"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the source tree, since building leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    offline = ("--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(out), str(copy)], check=True
    )
    return next(out.glob("sluice-*.whl"))


def test_a_wheel_holds_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".py")}
    assert held == {
        path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
    }


def test_an_installed_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--no-compile",
         "--disable-pip-version-check", "--target", str(site), str(wheel)], check=True,
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def sluice_says(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [str(site / "bin" / "sluice"), *words],
            cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, said, wrong = sluice_says("--help")
    assert (code, wrong) == (0, "")
    assert said.startswith("usage: sluice COMMAND ...")
    code, said, wrong = sluice_says("train")
    assert (code, wrong) == (0, "")
    assert "vicreg" in said
    code, said, wrong = sluice_says("pack", "--help")
    assert (code, wrong) == (0, "")
    assert said.startswith("usage: sluice pack ")
    code, said, wrong = sluice_says("train", "vicreg", "--pack", "nowhere", "--out", "run")
    assert (code, said) == (2, "")
    assert wrong.startswith("error: no pack at ")
    assert not list(elsewhere.iterdir())
