"""By the record, every floor is three deviations below intact trainings and three above broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.floors.paths import CodePath, narrower_paths
from tests.floors.record import (
    DEVIATIONS,
    PAGE,
    PATHS,
    ROOT,
    SEEDS,
    Held,
    Run,
    absent,
    held,
    page,
    read_runs,
    spread,
)
from tests.floors.table import FLOORS, Floor, check
from tests.floors.trainings import TRAININGS
from tests.recipes.broken import BREAKS

RUNS = read_runs()
HELD = held(RUNS)
WIDEST = ("ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2")  # of the processor that made the record


@pytest.mark.parametrize("entry", HELD, ids=lambda entry: f"{entry.floor.training}-{entry.floor.figure}")
def test_a_floor_leaves_three_deviations_on_both_sides(entry: Held) -> None:
    assert entry.room >= DEVIATIONS, (entry.between, entry.sound)
    assert entry.distance >= DEVIATIONS, (entry.between, entry.broken)


def test_the_record_is_whole() -> None:
    assert [entry.floor for entry in HELD] == list(FLOORS)
    assert absent(RUNS) == []


def test_what_a_record_lacks_is_named() -> None:
    runs = [Run("vae", seed, "", how, {}, 1.0) for seed in SEEDS for how in ("", "vae")]
    keys = [key for key in absent(runs) if key[0] == "vae"]
    assert keys == [("vae", seed, path, "") for path in PATHS[1:] for seed in SEEDS]
    assert not {run.key for run in RUNS} & set(absent(RUNS))


def test_the_table_the_trainings_and_the_record_are_of_the_same() -> None:
    assert {floor.training for floor in FLOORS} == set(TRAININGS) >= {run.training for run in RUNS}
    assert {how for floor in FLOORS for how in floor.breaks} <= set(BREAKS)
    assert len({run.key for run in RUNS}) == len(RUNS)
    without = {floor.training for floor in FLOORS} - {f.training for f in FLOORS if f.breaks}
    assert without == {"frozen_probe", "votes"}, "nothing is trained there; what is measured has its oracle"


def test_a_path_that_names_what_the_processor_takes_changes_nothing() -> None:
    """So only the other recorded code paths can give other results on that processor."""
    own = {(run.training, run.seed): run.figures for run in RUNS if run.path == "" and not run.broken}
    alike = [run for run in RUNS if run.path in WIDEST]
    assert all(run.figures == own[run.training, run.seed] for run in alike)


def test_the_page_shows_the_record() -> None:
    assert PAGE.read_text() == page(RUNS)


def test_a_floor_out_of_reach_or_too_low_is_told() -> None:
    figures = (0.80, 0.82, 0.84, 0.86, 0.88)
    runs = [Run("t", seed, "", "", {"top1": value}, 1.0) for seed, value in enumerate(figures)]
    runs += [Run("t", seed, "", "b", {"top1": value - 0.5}, 1.0) for seed, value in enumerate(figures)]
    assert spread(figures).deviation == pytest.approx(0.0316, abs=1e-4)
    for least, fits in ((0.76, False), (0.74, True), (0.44, True), (0.42, False)):
        (entry,) = held(runs, [Floor("t", "top1", ("b",), least=least)])
        assert entry.holds == fits, least
    turned = [replace(run, figures={"top1": -run.figures["top1"]}) for run in runs]
    for most, fits in ((-0.76, False), (-0.74, True), (-0.44, True), (-0.42, False)):
        (entry,) = held(turned, [Floor("t", "top1", ("b",), most=most)])
        assert entry.holds == fits, most


def test_a_figure_that_misses_its_floor_fails() -> None:
    for floor in FLOORS:
        sound = {f.figure: f.limit + f.sign * 1e-3 for f in FLOORS if f.training == floor.training}
        check(floor.training, sound)
        with pytest.raises(AssertionError, match=f"{floor.training}: {floor.figure} "):
            check(floor.training, sound | {floor.figure: floor.limit})
    with pytest.raises(AssertionError, match="no floor for other"):
        check("other", {})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", narrower_paths(), ids=lambda path: path.text)
def test_the_floors_hold_on_other_code_paths(path: CodePath) -> None:
    """Processors without the widest instructions of this one take these code paths."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "floor", "tests"]
    environment = {**os.environ, path.variable: path.value, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1750)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout
