r"""Run the trainings of `tests/floors/table.py`, over seeds and code paths, and with broken objectives.

Example:
    python -m tests.floors.measure

Every run is a line of docs/records/floors.jsonl; runs already recorded are not measured again. After changing
a training, name it with `--again`, which drops its lines first. At the end docs/floors.md is written anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from loaders.packs import open_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from tests.floors.data import Data
from tests.floors.paths import OWN, CodePath, code_paths, narrower_paths
from tests.floors.record import PAGE, RECORD, ROOT, SEEDS, Run, append_run, held, page, read_runs
from tests.floors.table import FLOORS
from tests.floors.trainings import TRAININGS
from tests.recipes import broken
from tools.write_digits import write_digits

Part = Literal["own", "broken", "paths"]


@dataclass(frozen=True)
class Config:
    """Measure the runs that the record lacks."""

    record: Path = RECORD
    """File that records the runs."""
    parts: tuple[Part, ...] = ("own", "broken", "paths")
    """own: on the processor's own code path; broken: with broken objectives; paths: on other code paths."""
    only: tuple[str, ...] = ()
    """Trainings to measure; all by default."""
    again: tuple[str, ...] = ()
    """Trainings whose recorded runs are dropped first."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds; only the first is used for code paths that just name the processor's default."""
    within: str = ""
    """Internal, for child processes: the code path of the process."""
    inner: bool = False
    """Internal, for child processes: measure in this process."""


def missing(config: Config, part: Part, path: CodePath) -> list[tuple[str, int, str]]:
    """Return training, seed and break of each run that is not yet recorded for a part on a code path."""
    names = config.only or tuple(TRAININGS)
    breaks = {name: sorted({b for f in FLOORS if f.training == name for b in f.breaks}) for name in names}
    there = {run.key for run in read_runs(config.record)}
    wanted = [
        (name, seed, how)
        for seed in config.seeds
        for name in names
        for how in (breaks[name] if part == "broken" else ("",))
    ]
    return [(name, seed, how) for name, seed, how in wanted if (name, seed, path.text, how) not in there]


def make_data(folder: Path) -> Data:
    """Write and pack the digits."""
    images = folder / "images"
    write_digits(images)
    splits = parse_splits(
        [f"unlabeled={images / 'train'}", f"train={images / 'train'}", f"test={images / 'test'}"]
    )
    pack_dataset(PackOptions(splits, folder / "digits", "webdataset", shard_size_mb=2.0, workers=1))
    return Data(open_pack(folder / "digits"), images, folder)


def measure(config: Config, part: Part, path: CodePath) -> None:
    """Train the missing runs in this process."""
    torch.set_num_threads(1)  # as in tests
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        for number, (name, seed, how) in enumerate(missing(config, part, path)):
            mend = broken.apply(how) if how else lambda: None
            start = time.process_time()
            try:
                figures = TRAININGS[name](data, Path(folder) / f"run-{number}", seed)
            finally:
                mend()
            append_run(Run(name, seed, path.text, how, figures, time.process_time() - start), config.record)
            print(f"{path.text or 'own'} {how or 'sound'} {name} {seed}: {figures}", flush=True)


def start(part: Part, path: CodePath, config: Config) -> None:
    """Measure in a new process, whose torch reads the path's environment variable."""
    command = [
        sys.executable,
        "-m",
        "tests.floors.measure",
        "--inner",
        "--parts",
        part,
        "--record",
        str(config.record),
    ]
    command += [
        "--seeds",
        *(str(seed) for seed in config.seeds),
        "--within",
        path.text,
        *(("--only", *config.only) if config.only else ()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if path.variable:
        environment[path.variable] = path.value
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def main() -> None:
    """Measure all missing runs."""
    config = tyro.cli(Config, description=__doc__)
    if config.inner:
        variable, _, value = config.within.partition("=")
        for part in config.parts:
            measure(config, part, CodePath(variable, value))
        return
    if config.again:
        kept = [run for run in read_runs(config.record) if run.training not in config.again]
        config.record.unlink()
        for run in kept:
            append_run(run, config.record)
    wanted = [(part, OWN, config.seeds) for part in config.parts if part != "paths"]
    if "paths" in config.parts:
        narrower = narrower_paths()
        wanted += [("paths", path, config.seeds) for path in narrower]
        wanted += [("paths", path, config.seeds[:1]) for path in code_paths() if path not in narrower]
    for part, path, seeds in wanted:
        few = replace(config, seeds=seeds)
        if missing(few, part, path):
            start(part, path, few)
    runs = read_runs(config.record)
    PAGE.write_text(page(runs))
    for entry in held(runs):
        if not entry.holds:
            least, most = entry.between
            print(f"{entry.floor}: expected between {least:.4f} and {most:.4f}")


if __name__ == "__main__":
    main()
