"""A mistake on a command line, `--help` and Ctrl-C are answered before anything heavy is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from loaders.packs.manifest import FORMAT_VERSION, Manifest, SplitInfo, SplitRange, write_manifest
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


NETWORK = ["--backbone", "tiny_resnet", "--resolution", "32"]
TRAIN = ["--pack", "PACK", "--out", "OUT", *NETWORK]
RUN = ["--pack", "PACK", "--init", "RUN", "--backbone", "resnet18"]
MISTAKES = [  # each with the line that tells it; PACK, BARE, RUN, OUT and IMAGE are replaced by paths
    (
        "recipes/supervised.py",
        [*TRAIN, "--labeled-split", "bare"],
        "labeled_split: expected labels in 'bare'",
    ),
    ("recipes/fixmatch.py", [*TRAIN, "--test-split", "bare"], "test_split: expected labels in 'bare'"),
    ("recipes/supervised.py", [*TRAIN, "--validation-split", "bare"], "validation_split: expected labels in"),
    (
        "recipes/transfer.py",
        [*RUN[:4], "--out", "OUT", "--train-split", "bare"],
        "train_split: expected labels",
    ),
    (
        "tools/probe.py",
        ["--pack", "PACK", "--run", "RUN", "--test-split", "bare"],
        "test_split: expected labels",
    ),
    (
        "tools/few_labels.py",
        [*RUN[:4], "--out", "OUT", "--train-split", "bare"],
        "train_split: expected labels",
    ),
    (
        "recipes/pipeline.py",
        [*TRAIN, "--unlabeled-split", "bare", "--test-split", "bare"],
        "test_split: expected",
    ),
    (
        "recipes/barlow.py",
        [
            *TRAIN,
            "--split",
            "bare",
            "--batch-size",
            "2",
            "--probe-every-epochs",
            "1",
            "--probe-splits",
            "bare",
        ],
        "probe_splits: expected labels in 'bare', found none; name a labelled split",
    ),
    (
        "recipes/supervised.py",
        [*TRAIN, "--validation-split", "no.parquet"],
        "validation_split: expected a label table no.parquet, found none; check the path",
    ),
    (
        "recipes/supervised.py",
        [*TRAIN, "--extra-labels", "docs"],
        "extra_labels: expected a label table docs",
    ),
    (
        "recipes/transfer.py",
        [*RUN[:4], "--out", "OUT", "--train-split", "x.parquet"],
        "train_split: expected a s",
    ),
    (
        "recipes/supervised.py",
        ["--pack", "BARE", "--out", "OUT", "--labeled-split", "bare", "--test-split", ""],
        "labels: the pack .*bare was made without labels and names no classes; name them with",
    ),
    (
        "recipes/active.py",
        ["--pack", "PACK", "--out", "OUT", "--filled", "no.csv"],
        "filled: expected a filled-in",
    ),
    (
        "recipes/supervised.py",
        [*RUN, "--out", "OUT"],
        "backbone: expected tiny_resnet, that of --init .*run, found resnet18; change one of them",
    ),
    (
        "recipes/barlow.py",
        [*TRAIN, "--init", "UNFINISHED", "--split", "bare", "--batch-size", "2"],
        "start: expected a run at .*, found no weights; train",
    ),
    ("tools/predict.py", ["--network", "x", "--images", "IMAGE", "--out", "OUT"], "network: expected a run"),
    (
        "tools/predict.py",
        ["--network", "timm:resnet18", "--images", "IMAGE", "--out", "OUT"],
        "IMAGE is not a source of images: expected a folder, .*; give its folder",
    ),
    (
        "tools/predict.py",
        ["--network", "timm:resnet18", "--images", "docs", "--out", "RUN"],
        "out: expected a new folder or one of predictions, found a run at .*; change it",
    ),
    (
        "tools/pack_dataset.py",
        ["--splits", "train=nowhere", "--out", "OUT"],
        "no images at nowhere: expected a f",
    ),
    (
        "tools/labels.py",
        ["import", "PACK", "--file", "no.csv", "--name", "a"],
        "file: expected a file of labels no",
    ),
    ("tools/inspect_pack.py", ["nowhere"], "no pack at "),
    ("tools/convert_pack.py", ["nowhere", "--out", "OUT", "--format", "ffcv"], "no pack at "),
    ("tools/label_sweep.py", ["--pack", "nowhere", "--out", "OUT", "--methods", "a=vae"], "no pack at "),
    (
        "tools/compare_methods.py",
        ["--family", "selfsup", "--pack", "nowhere", "--out", "OUT", "--budget-s", "1"],
        "no pack at ",
    ),
    (
        "recipes/supervised.py",
        [*TRAIN, "--learning-rate", "1"],
        ".* --learning-rate, 1; did you mean --lr\\?",
    ),
    ("recipes/barlow.py", [*TRAIN, "--learning-rate", "1"], ".*; did you mean --lr-weights\\?"),
    ("recipes/barlow.py", [*TRAIN, "--num_workers", "1"], ".*; did you mean --num-threads\\?"),
    (
        "tools/sluice.py",
        ["train", "vicreg", "--pack", "nowhere", "--out", "OUT"],
        "no pack at .*: make one with `sluice pack --out .* \\.\\.\\.`",
    ),
    ("tools/sluice.py", ["inspect", "docs"], "docs is not a pack: .*; give the --out of sluice pack"),
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


def make_places(folder: Path) -> dict[str, str]:
    """Make two packs, of which only the manifests exist, and the folders of two runs."""

    def split(name: str, first: int, num_labeled: int) -> SplitInfo:
        return SplitInfo(name, name, (SplitRange(first, first + 2, first, first + 1, 0),), 2, num_labeled, 0)

    for name, splits, classes in (
        ("pack", [split("train", 0, 2), split("test", 2, 2), split("bare", 4, 0)], ("cat", "dog")),
        ("bare", [split("bare", 0, 0)], ()),
    ):
        splits = [
            replace(one, ranges=(replace(one.ranges[0], first_shard=i, stop_shard=i + 1),))
            for i, one in enumerate(splits)
        ]
        (folder / name).mkdir()
        counts = (2 * len(splits), len(splits), 2 * len(splits), 0)
        made = Manifest(FORMAT_VERSION, "webdataset", *counts, {}, classes, tuple(splits), {}, ())
        write_manifest(folder / name, made)
    for name in ("run", "unfinished"):
        (folder / name).mkdir()
        content = {"recipe": "barlow", "config": {"backbone": "tiny_resnet", "resolution": 32}}
        (folder / name / "config.json").write_text(json.dumps(content))
    (folder / "run" / "backbone.safetensors").touch()
    (folder / "image.jpg").touch()
    return {name.upper(): str(folder / name) for name in ("pack", "bare", "run", "unfinished", "out")} | {
        "IMAGE": str(folder / "image.jpg")
    }


def tell_mistakes(out: Path) -> None:
    places = make_places(out)
    words = [(script, [places.get(word, word) for word in words]) for script, words, _ in MISTAKES]
    done = python(json.dumps(words))
    assert done.returncode == 0, done.stderr
    (out / "told.json").write_text(done.stdout)


def test_mistakes_about_the_content_of_places_are_told_at_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    written = made_once(tmp_path_factory, "told-early", tell_mistakes) / "told.json"
    wrong = []
    for (script, words, line), row in zip(MISTAKES, json.loads(written.read_text()), strict=True):
        told = Outcome(*row)
        begins = line.replace("IMAGE", ".*image.jpg")
        if (told.code, told.out) != (2, "") or not re.fullmatch(rf"error: (.*/)?{begins}.*\n", told.err):
            wrong.append(f"{script} {' '.join(words)}: {told}")
    assert not wrong, "\n".join(wrong)


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
