"""Draw the chart of a loader benchmark from its records, and from nothing else.

Example:
    python tools/plot_bench.py loaders.jsonl --out bench.svg

One panel per workload, from the last benchmark of it in the file: bars are medians of runs, whiskers reach
from the slowest to the fastest run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.files import check_file
from loaders.errors import UserError, run_command
from tools.bench.table import Record, reference_of, summarise

mpl.use("Agg")
_OF_WORKLOAD = ("views", "resolution", "batch_size", "threads")
COLORS = {"backend": "#1b6e9c", "peer": "#9aa5ad", "limit": "#e3d9c6"}


@dataclass(frozen=True)
class Config:
    """Chart of a loader benchmark."""

    records: Annotated[Path, tyro.conf.Positional]
    """JSON lines that tools/bench_loaders.py wrote."""
    out: Path
    """Chart to write; the suffix (.svg or .png) chooses its kind."""


def read_records(path: Path) -> list[Record]:
    """Return the records of a file.

    Raises:
        UserError: no such file, one that is no text, or a line that is no record.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file of records, found none; run tools/bench_loaders.py --json")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            last_benchmarks([record])
            summarise([record])
            [record["workload"][name] for name in _OF_WORKLOAD]
            record["machine"]["cpu"], record["machine"]["cores"], record["commit"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: expected a record of tools/bench_loaders.py; remove it"
            ) from None
        records.append(record)
    return records


def last_benchmarks(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records of the last benchmark of each workload that anything ran in."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = json.dumps([record["workload"], record["pack"]], sort_keys=True)
        group = groups.setdefault(key, [])
        if group and group[0]["benchmark"] < record["benchmark"]:
            group.clear()
        group.append(record)
    return [group for group in groups.values() if any("images_per_s" in record for record in group)]


def draw(groups: Sequence[Sequence[Record]], out: Path) -> None:
    """Write a chart with one panel per group of records."""
    from matplotlib import pyplot as plt

    heights = [1.2 + 0.32 * len(summarise(group)) for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _panel(axis, group)
    first = groups[0][0]
    machine = first["machine"]
    figure.supxlabel(
        f"source images per second; {machine['cpu']}, {machine['cores']} cores; commit {first['commit']}",
        fontsize=8,
    )
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _panel(axis: Any, records: Sequence[Record]) -> None:
    rows = [row for row in reversed(summarise(records)) if row.contender != "copy_only"]
    reference = reference_of(rows[::-1])
    work = records[0]["workload"]
    rates = [row.images_per_s for row in rows]
    whiskers = [
        [row.images_per_s - row.low for row in rows],
        [row.high - row.images_per_s for row in rows],
    ]
    axis.barh([row.contender for row in rows], rates, xerr=whiskers, color=[COLORS[row.kind] for row in rows])
    for place, row in enumerate(rows):
        label = f" {row.images_per_s:,.0f}"
        if reference and row.kind == "peer" and reference.kind == "backend":
            label += f"  ({reference.contender}: {reference.images_per_s / row.images_per_s:.1f}x)"
        axis.text(row.high, place, label, va="center", fontsize=8)
    axis.set_xlim(0, max(row.high for row in rows) * 1.25)
    axis.set_title(
        f"{work['views']}, {work['resolution']} px, batch {work['batch_size']}, {work['threads']} threads",
        loc="left",
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the chart of the command line."""
    config = tyro.cli(Config, description=__doc__)
    if config.out.suffix not in (".svg", ".png"):
        raise UserError(f"--out {config.out}: expected a name ending in .svg or .png; change the suffix")
    groups = last_benchmarks(read_records(config.records))
    if not groups:
        raise UserError(f"{config.records}: expected at least one finished run, found none; run it again")
    check_file(config.out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    draw(groups, config.out)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_command(main)
