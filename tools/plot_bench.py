"""Draw a chart of loader benchmarks from their records.

Example:
    python tools/plot_bench.py loaders.jsonl --out bench.svg

Each combination of file, workload, set of images and machine has a panel with its latest benchmark. Bars are
medians of runs; whiskers reach from the slowest to the fastest run. Each panel has its own scale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.common.errors import run_command
from loaders.common.program import Positional, check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Chart of loader benchmarks."""

    records: Positional[tuple[Path, ...]]
    """Files of JSON lines that tools/bench_loaders.py wrote."""
    out: Path
    """Chart to write; the suffix (.svg or .png) chooses the format."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import matplotlib as mpl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.errors import UserError
from loaders.common.files import check_file
from loaders.common.json_text import parse_json
from tools.bench.table import Record, Row, reference_of, summarise

mpl.use("Agg")
_OF_WORKLOAD = ("views", "resolution", "batch_size", "threads")
COLORS = {"backend": "#1b6e9c", "peer": "#9aa5ad", "limit": "#e3d9c6"}
WORDS = {
    "barlow": "two Barlow Twins views",
    "fixmatch": "FixMatch's weak and strong view",
    "crop_flip": "one view, crop and flip",
    "crop_flip_pair": "two views, crop and flip",
    "rotations": "four rotations of a crop",
    "tiles": "nine tiles of a crop",
}
WIDTH, MARGIN = 6.4, 1.35  # inches: width of a column of panels, and of the names to the left of the bars
BAR, HEAD, FOOT = 0.24, 0.65, 0.5  # inches: height of a bar, of a panel's title, of the text at the bottom
MOST_IN_A_COLUMN = 4  # panels per column, on average


@dataclass(frozen=True)
class Panel:
    """The chart of one workload from one file and machine.

    Attributes:
        records: records of the latest benchmark.
    """

    file: str
    records: list[Record]

    @property
    def rows(self) -> list[Row]:
        """Return the contenders that ran, fastest first, without copy_only, which would dwarf the others."""
        return [row for row in summarise(self.records) if row.contender != "copy_only"]

    @property
    def absent(self) -> list[Record]:
        """Return one record for each contender that has no finished run."""
        ran = {record["contender"] for record in self.records if "images_per_s" in record}
        others = {record["contender"]: record for record in self.records}
        return [record for name, record in others.items() if name not in ran]

    @property
    def height(self) -> float:
        """Return the height of the panel in inches."""
        return HEAD + BAR * (len(self.rows) + len(self.absent))


def read_records(path: Path) -> list[Record]:
    """Return the records of a file.

    Raises:
        UserError: there is no such file, or a line is not a record.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file of records, found none; run tools/bench_loaders.py --json")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = parse_json(line)
            last_benchmarks(path.stem, [record])
            summarise([record])
            [record["workload"][name] for name in _OF_WORKLOAD]
            record["machine"]["cpu"], record["machine"]["cores"], record["commit"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: expected a record of tools/bench_loaders.py; remove it"
            ) from None
        records.append(record)
    return records


def last_benchmarks(file: str, records: Sequence[Record]) -> list[Panel]:
    """Return a panel per workload, set of images and machine: its latest benchmark, if a contender ran."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        same = [record[name] for name in ("workload", "pack", "epoch_images", "machine")]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(record)
    panels = []
    for group in groups.values():
        last = max(record["benchmark"] for record in group)
        panels.append(Panel(file, [record for record in group if record["benchmark"] == last]))
    return [panel for panel in panels if panel.rows]


def draw(panels: Sequence[Panel], out: Path) -> None:
    """Write the chart of these panels."""
    from matplotlib import pyplot as plt

    columns = deal(panels)
    width = WIDTH * len(columns)
    height = FOOT + max(sum(panel.height for panel in column) for column in columns)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sluice", "font.size": 9}):
        figure = plt.figure(figsize=(width, height))
        for number, column in enumerate(columns):
            top = height
            for panel in column:
                bars = panel.height - HEAD
                corner = ((number * WIDTH + MARGIN) / width, (top - panel.height) / height)
                size = ((WIDTH - MARGIN - 0.15) / width, bars / height)
                _draw_panel(figure.add_axes((*corner, *size)), panel)
                top -= panel.height
        figure.text(0.1 / width, 0.1 / height, _origin(panels), fontsize=7, color="#555555")
        figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
        plt.close(figure)


def deal(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Distribute the panels, in order, over columns of about equal height."""
    num_columns = -(-len(panels) // MOST_IN_A_COLUMN)
    share = sum(panel.height for panel in panels) / num_columns
    columns: list[list[Panel]] = [[] for _ in range(num_columns)]
    above = 0.0
    for panel in panels:
        columns[min(int((above + panel.height / 2) / share), num_columns - 1)].append(panel)
        above += panel.height
    return [column for column in columns if column]


def _origin(panels: Sequence[Panel]) -> str:
    records = [record for panel in panels for record in panel.records]
    machines = dict.fromkeys(f"{r['machine']['cpu']}, {r['machine']['cores']} cores" for r in records)
    commits = dict.fromkeys(record["commit"] for record in records)
    return (
        "source images per second, median of runs, slowest to fastest; in brackets: how many times as fast "
        f"Sluice's fastest row is\n{'; '.join(machines)}; "
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"
    )


def _draw_panel(axis: Any, panel: Panel) -> None:
    rows, work = panel.rows, panel.records[0]["workload"]
    reference = reference_of(rows)
    rates = [row.images_per_s for row in rows]
    whiskers = [[row.images_per_s - row.low for row in rows], [row.high - row.images_per_s for row in rows]]
    style = {"elinewidth": 1, "ecolor": "#333333"}
    colors = [COLORS[row.kind] for row in rows]
    axis.barh(range(len(rows)), rates, height=0.72, xerr=whiskers, color=colors, error_kw=style)
    for place, row in enumerate(rows):
        label = f"{row.images_per_s:,.0f}"
        if reference and row.kind == "peer" and reference.kind == "backend":
            label += f" ({_ratio(reference, row)})"
        _label(axis, row.high, place, label)
    for place, record in enumerate(panel.absent, len(rows)):
        _label(axis, 0, place, record["status"])
    names = [(row.contender, row.kind) for row in rows]
    names += [(record["contender"], record["kind"]) for record in panel.absent]
    axis.set_yticks(range(len(names)), [_name(*name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, max(row.high for row in rows) * 1.3)
    axis.set_xticks([])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    stored = "pixels" if work.get("encoding") == "raw" else "JPEG"
    title = f"{WORDS[work['views']]}, {work['resolution']} px, from {stored}"
    axis.set_title(title, loc="left", fontsize=10, pad=16)
    details = f"batch {work['batch_size']}, {work['threads']} threads; {panel.file}"
    under_title = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(details, (0, 1), (0, 5), **under_title, fontsize=7, color="#555555")


def _label(axis: Any, x: float, y: int, text: str) -> None:
    axis.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _ratio(reference: Row, row: Row) -> str:
    ratio = reference.images_per_s / row.images_per_s
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"


def _name(contender: str, kind: str) -> str:
    spaced = contender.replace("_backend", "").replace("_", " ")
    return f"Sluice {spaced}" if kind == "backend" else spaced


def main() -> None:
    """Parse the command line and draw the chart."""
    config = command_line(Config, __doc__)
    if config.out.suffix not in (".svg", ".png"):
        raise UserError(f"--out {config.out}: expected a name ending in .svg or .png; change the suffix")
    panels = [panel for path in config.records for panel in last_benchmarks(path.stem, read_records(path))]
    if not panels:
        raise UserError(
            f"{', '.join(map(str, config.records)) or 'records'}: expected at least one finished run, found "
            "none; run tools/bench_loaders.py --json"
        )
    check_file(config.out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    draw(panels, config.out)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_command(main)
