"""The recorded runs behind the floors, and the page that is written from them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tests.floors.table import FLOORS, Floor

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "records" / "floors.jsonl"
PAGE = ROOT / "docs" / "floors.md"
DEVIATIONS = 3.0
_SMALLEST = 1e-4  # lower limit of deviations, since five seeds may agree by chance
SEEDS = (0, 1, 2, 3, 4)
# Code paths of the record's processor, which has AVX2: unrestricted, and those of narrower processors.
PATHS = ("", "ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=SSE41")
Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Run:
    """The record of one training.

    Attributes:
        training: a name of `TRAININGS`.
        seed: seed of weights, order, views and draws.
        path: the code path as text, "" for the processor's own.
        broken: a name of `BREAKS`, "" for none.
        figures: results by name.
        cpu_s: seconds of processor time.
    """

    training: str
    seed: int
    path: str
    broken: str
    figures: dict[str, float]
    cpu_s: float

    @property
    def key(self) -> Key:
        """The fields that identify the run."""
        return self.training, self.seed, self.path, self.broken


def read_runs(record: Path = RECORD) -> list[Run]:
    """Return the recorded runs; none if there is no file."""
    if not record.is_file():
        return []
    return [Run(**json.loads(line)) for line in record.read_text().splitlines()]


def append_run(run: Run, record: Path) -> None:
    """Append a run to the record."""
    rounded = {name: round(value, 5) for name, value in run.figures.items()}
    kept = asdict(run) | {"figures": rounded, "cpu_s": round(run.cpu_s, 1)}
    with record.open("a") as file:
        file.write(json.dumps(kept) + "\n")


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over seeds."""

    mean: float
    deviation: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation (of a sample) of two numbers or more."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)), len(values))


class Held(NamedTuple):
    """A floor and the measurements behind it.

    Attributes:
        floor: entry of the table.
        sound: figures of intact trainings, by code path.
        broken: figures of broken trainings, by name of the break.
    """

    floor: Floor
    sound: dict[str, Spread]
    broken: dict[str, Spread]

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds, pooled over code paths, each with its own mean."""
        squares = math.fsum((s.count - 1) * s.deviation**2 for s in self.sound.values())
        return math.sqrt(squares / sum(s.count - 1 for s in self.sound.values()))

    def room_on(self, path: str) -> float:
        """Return the distance from the floor to the mean on a code path, in standard deviations."""
        return self.floor.sign * (self.sound[path].mean - self.floor.limit) / max(self.deviation, _SMALLEST)

    def distance_of(self, broken: str) -> float:
        """Return the distance from the mean of a broken training to the floor, in standard deviations."""
        found = self.broken[broken]
        return self.floor.sign * (self.floor.limit - found.mean) / max(found.deviation, _SMALLEST)

    @property
    def room(self) -> float:
        """The smallest `room_on` over all code paths."""
        return min(self.room_on(path) for path in self.sound)

    @property
    def distance(self) -> float:
        """The smallest `distance_of` over all breaks; infinite if there are none."""
        return min((self.distance_of(broken) for broken in self.broken), default=math.inf)

    @property
    def holds(self) -> bool:
        """Whether the floor is far enough from intact and from broken trainings."""
        return min(self.room, self.distance) >= DEVIATIONS

    @property
    def between(self) -> tuple[float, float]:
        """The smallest and the largest floor that would hold; in reverse order if none would."""
        sign, away = self.floor.sign, DEVIATIONS * self.deviation
        least = [sign * s.mean + DEVIATIONS * s.deviation for s in self.broken.values()]
        most = min(sign * s.mean - away for s in self.sound.values())
        return sign * max(least, default=-math.inf), sign * most


def held(runs: list[Run], floors: Sequence[Floor] = FLOORS) -> list[Held]:
    """Return the measurements of every floor whose training has several recorded seeds."""
    entries = []
    for floor in floors:
        groups: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            if run.training == floor.training and (not run.broken or run.broken in floor.breaks):
                groups.setdefault((run.path, run.broken), []).append(run.figures[floor.figure])
        spreads = {key: spread(values) for key, values in groups.items() if len(values) > 1}
        sound = {path: s for (path, how), s in spreads.items() if not how}
        if sound:
            entries.append(Held(floor, sound, {how: s for (_, how), s in spreads.items() if how}))
    return entries


def absent(runs: list[Run]) -> list[Key]:
    """Return the keys of the runs that a complete record has and this one lacks.

    A complete record has every seed of every training: intact on each of `PATHS`, and with each break.
    """
    there = {run.key for run in runs}
    names = dict.fromkeys(floor.training for floor in FLOORS)
    broken = dict.fromkeys((floor.training, how) for floor in FLOORS for how in floor.breaks)
    wanted = [(name, seed, path, "") for path in PATHS for name in names for seed in SEEDS]
    wanted += [(name, seed, "", how) for name, how in broken for seed in SEEDS]
    return [key for key in wanted if key not in there]


def _of_path(path: str) -> str:
    """Return the text of a code path for the page."""
    return f"`{path}`" if path else "unrestricted code path"


def _absent_lines(keys: list[Key]) -> list[str]:
    """Return a line for each code path, or broken trainings, and each set of missing seeds."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for training, seed, path, how in keys:
        where = f"{_of_path(path)}, broken" if how else _of_path(path)
        what = f"{training} ({how})" if how else training
        seeds.setdefault((where, what), []).append(seed)
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (where, what), missing in seeds.items():
        groups.setdefault((where, tuple(missing)), []).append(what)
    return [
        f"- {where}, seeds {', '.join(map(str, missing))}: {', '.join(names)}"
        for (where, missing), names in groups.items()
    ]


_HEAD = """# Floors of the trainings in tests

Tests train small networks and hold them to floors. How a processor rounds decides part of such an outcome, so
each floor is at least three standard deviations below the mean over seeds, on every code path of the
processor that it was measured on, and at least three above the mean over seeds with its objective broken
(`tests/recipes/broken.py`), where its row names a break. For figures that should be small, read "below" as
"above" and the reverse. Each mean is over five seeds, or over two or more where the end of this page names
runs that are missing.

`python -m tests.floors.measure` measures what `docs/records/floors.jsonl` lacks and writes this page; tests
hold the floors of `tests/floors/table.py` against that record. `make test-slow` trains all of them anew on
every narrower code path of its processor (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`).

Each row gives the mean on the code path with the least room, and that of the break closest to the floor. On
the unrestricted code path, neither variable above is set. The deviation of sound runs is pooled over all
paths, each about its own mean. Room and distance are in deviations.

"""


def _text(found: Spread) -> str:
    """Format mean and standard deviation for a table."""
    digits = 1 if abs(found.mean) >= 100 else 3
    return f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}"


def _row(entry: Held) -> str:
    """Return the table row of a floor."""
    floor, sign = entry.floor, entry.floor.sign
    worst = min(entry.sound, key=lambda path: entry.room_on(path))
    cells = [floor.training, floor.figure, f"{'>' if sign > 0 else '<'} {floor.limit:g}"]
    found = Spread(entry.sound[worst].mean, entry.deviation, 0)
    cells += [_text(found), f"`{worst}`" if worst else "unrestricted", f"{entry.room:.1f}"]
    if not entry.broken:
        return "| " + " | ".join([*cells, "", "", ""]) + " |"
    nearest = min(entry.broken, key=entry.distance_of)
    broken = [nearest, _text(entry.broken[nearest]), f"{entry.distance:.1f}"]
    return "| " + " | ".join(cells + broken) + " |"


def page(runs: list[Run]) -> str:
    """Return the page of all floors."""
    paths = sorted({run.path for run in runs})
    seconds = sum(run.cpu_s for run in runs)
    lines = [_HEAD + "| training | figure | floor | mean | path | room | broken | mean | distance |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(entry) for entry in held(runs)]
    lines += [
        "",
        f"{len(runs)} runs, {seconds / 60:.0f} minutes of one core; sound runs per code path:",
        "",
    ]
    for path in paths:
        count = sum(run.path == path and not run.broken for run in runs)
        lines.append(f"- {_of_path(path)}: {count}")
    keys = absent(runs)
    if keys:
        lines += ["", f"A complete record would have {len(keys)} more runs, five seeds of each:", ""]
        lines += _absent_lines(keys)
    return "\n".join(lines) + "\n"
