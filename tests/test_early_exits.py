"""A mistake on a command line, `--help` and Ctrl-C are answered before anything heavy is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.once import made_once

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("recipes", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "run_command(main)" in path.read_text()
]
READERS = [  # commands that read a pack, each with its other required options
    ("recipes/active.py", ["--out", "run"]),
    ("recipes/barlow.py", ["--out", "run"]),
    ("recipes/evaluate.py", ["--run", "before", "--out", "run"]),
    ("recipes/pipeline.py", ["--out", "run"]),
    ("recipes/transfer.py", ["--init", "before", "--out", "run"]),
    ("tools/probe.py", ["--run", "before"]),
]
STARTS = [  # commands that read a run or weights and need no pack
    ("tools/export.py", ["--form", "onnx", "--out", "x.onnx", "--run", "nowhere"]),
    ("tools/predict.py", ["--images", "x", "--out", "y", "--network", "nowhere"]),
    ("tools/report.py", ["--run", "nowhere"]),
    ("tools/report.py", ["--run", "docs", "--beside", "nowhere"]),
]
WITHOUT_A_PACK = [  # commands that measure or show a pack, which they get as an argument
    ("tools/show_views.py", ["nowhere"]),
    ("tools/doctor.py", ["nowhere"]),
    ("tools/bench_memory.py", ["nowhere"]),
    *((f"tools/bench_{what}.py", ["--pack", "nowhere"]) for what in ("guarantees", "loaders", "training")),
]
COMMANDS = [(script, [word]) for script in SCRIPTS for word in ("--nonsense", "--help")] + [
    *((script, ["--pack", "nowhere", *words]) for script, words in READERS),
    *((script, ["--pack", "nowhere", *words[:-1], "README.md"]) for script, words in READERS),
    *STARTS,
    *WITHOUT_A_PACK,
    ("recipes/barlow.py", ["--pack", "nowhere", "--out", "run", "--seed", "-1"]),
    ("tools/doctor.py", ["docs", "--backbone", "resnt50"]),
    ("tools/labels.py", ["divide", "--nonsense"]),
    ("tools/labels.py", ["divide", "--help"]),
    ("tools/sluice.py", ["train"]),
    ("tools/sluice.py", ["train", "vicreg", "--nonsense"]),
    ("tools/sluice.py", ["pack", "--help"]),
    ("tools/sluice.py", ["bench"]),
]


class Outcome(NamedTuple):
    code: object
    out: str
    err: str
    omp: str | None


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests/early_exits.py"), *words],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def run_all(out: Path) -> None:
    done = python(json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    (out / "outcomes.json").write_text(done.stdout)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Outcome]:
    written = made_once(tmp_path_factory, "early-exits", run_all) / "outcomes.json"
    found = (Outcome(*row) for row in json.loads(written.read_text()))
    return {(script, *words): outcome for (script, words), outcome in zip(COMMANDS, found, strict=True)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_option_and_help_need_nothing_heavy(
    script: str, outcomes: dict[tuple[str, ...], Outcome]
) -> None:
    wrong, helped = outcomes[script, "--nonsense"], outcomes[script, "--help"]
    assert (wrong.code, wrong.out) == (2, ""), wrong
    assert re.fullmatch(r"error: .*: expected .*, found .*; .*\n", wrong.err), wrong
    assert (helped.code, helped.err) == (0, ""), helped
    assert helped.out.startswith("usage:")
    assert wrong.omp == helped.omp == "passive", "torch would read how OpenMP waits before it is told"


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "tools/sluice.py"])
def test_the_command_line_is_read_in_one_place(script: str) -> None:
    text = (ROOT / script).read_text()
    assert "tyro.cli" not in text, "write command_line(Config, __doc__), which knows what was checked"
    assert text.count("    check_command_line(") == 1


def test_what_a_configuration_refuses_is_one_line(outcomes: dict[tuple[str, ...], Outcome]) -> None:
    refused = outcomes["recipes/barlow.py", "--pack", "nowhere", "--out", "run", "--seed", "-1"]
    assert refused.code == 2
    assert refused.err.startswith("error: seed: expected a whole number below 2**62, at least 0, found -1")


@pytest.mark.parametrize(("script", "words"), READERS, ids=[script for script, _ in READERS])
def test_places_that_cannot_be_are_one_line(
    script: str, words: list[str], outcomes: dict[tuple[str, ...], Outcome]
) -> None:
    absent = outcomes[script, "--pack", "nowhere", *words]
    assert (absent.code, absent.out) == (2, "")
    assert absent.err.startswith("error: no pack at ")
    assert absent.err.count("\n") == 1
    if script != "recipes/barlow.py":  # a run has another message about its folder
        taken = outcomes[script, "--pack", "nowhere", *words[:-1], "README.md"]
        assert taken.code == 2
        assert re.match(r"error: (out|run): expected a folder .*README\.md", taken.err), taken.err
        assert taken.err.count("\n") == 1


@pytest.mark.parametrize(("script", "words"), STARTS, ids=[f"{s} {' '.join(w)}" for s, w in STARTS])
def test_a_network_that_is_not_there_is_one_line(
    script: str, words: list[str], outcomes: dict[tuple[str, ...], Outcome]
) -> None:
    absent = outcomes[script, *words]
    option = words[-2].removeprefix("--")
    assert (absent.code, absent.out) == (2, "")
    others = "" if script == "tools/report.py" else ", weights file, timm:NAME or hf:REPO"
    assert absent.err.startswith(f"error: {option}: expected a run folder{others}, found ")
    assert absent.err.endswith(" at nowhere; check the path\n")


@pytest.mark.parametrize(("script", "words"), WITHOUT_A_PACK, ids=[script for script, _ in WITHOUT_A_PACK])
def test_a_pack_that_is_not_there_is_one_line(
    script: str, words: list[str], outcomes: dict[tuple[str, ...], Outcome]
) -> None:
    absent = outcomes[script, *words]
    assert (absent.code, absent.out) == (2, "")
    assert re.fullmatch(r"error: no pack at .*nowhere: make one with .*\n", absent.err), absent


def test_a_mistyped_network_is_told_before_timm_is_loaded(
    outcomes: dict[tuple[str, ...], Outcome],
) -> None:
    refused = outcomes["tools/doctor.py", "docs", "--backbone", "resnt50"]
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith(" close matches: resnet50, resnet50t, resnet50s, resnet50d\n"), refused.err


def test_a_subcommand_is_checked_too(outcomes: dict[tuple[str, ...], Outcome]) -> None:
    wrong = outcomes["tools/labels.py", "divide", "--nonsense"]
    assert (wrong.code, wrong.err.count("\n")) == (2, 1), wrong
    helped = outcomes["tools/labels.py", "divide", "--help"]
    assert (helped.code, helped.err) == (0, "")
    assert "--validation" in helped.out


def test_the_command_for_all_is_as_quick(outcomes: dict[tuple[str, ...], Outcome]) -> None:
    wrong = outcomes["tools/sluice.py", "train", "vicreg", "--nonsense"]
    assert (wrong.code, wrong.out) == (2, "")
    assert "sluice train vicreg" in wrong.err
    for words, begin in (
        (("train",), " "),
        (("bench",), "usage: sluice bench WHAT"),
        (("pack", "--help"), "usage: sluice pack "),
    ):
        shown = outcomes["tools/sluice.py", *words]
        assert (shown.code, shown.err) == (0, ""), shown
        assert shown.out.startswith(begin)


@pytest.mark.parametrize(
    ("when", "script"), [("late", "tools/profile_kernels.py"), ("early", "tools/probe.py")]
)
def test_ctrl_c_while_libraries_load_is_one_line(when: str, script: str) -> None:
    """This includes light libraries, which a script imports before it reads its command line."""
    done = python("--interrupt", when, script)
    line = "interrupted: no work had begun; start the same command again\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", line)
