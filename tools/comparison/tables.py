"""From the records of a comparison to its markdown table and its plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.files import write_atomic
from engine.report.figures import draw_picture, dress, save_picture
from engine.report.page import Picture
from engine.report.theme import Palette
from tools.comparison.methods import PRETRAININGS, TRAININGS
from tools.comparison.records import Record


@dataclass(frozen=True)
class Row:
    """One method of a table.

    Attributes:
        title: of the method.
        facts: cells that are not accuracies.
        shares: accuracies in [0, 1], those of all seeds; empty where nothing was measured.
        baseline: whether the others are compared with it.
    """

    title: str
    facts: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    baseline: bool = False


@dataclass(frozen=True)
class AccuracyTable:
    """A comparison: the columns of facts, the columns of accuracies, and a row per method."""

    facts: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def best(self, column: int) -> float:
        """Return the highest mean of a column."""
        return max((statistics.fmean(r.shares[column]) for r in self.rows if r.shares[column]), default=0.0)


def selfsup_table(records: Sequence[Record]) -> AccuracyTable:
    """Return a row per self-supervised method, then the untrained backbone and training from scratch."""
    frozen = {r["method"]: r for r in records if r["kind"] == "frozen"}
    tuned: dict[str, dict[int, list[float]]] = {}
    for record in (r for r in records if r["kind"] == "fine_tuned"):
        by_count = tuned.setdefault(record["method"], {})
        for result in record["results"]:
            by_count.setdefault(result["labels_per_class"], []).append(result["top1"])
    trained = {r["method"]: r for r in records if r["kind"] == "pretraining"}
    counts = sorted({count for by_count in tuned.values() for count in by_count})

    def shares(frozen_as: str, tuned_as: str) -> tuple[tuple[float, ...], ...]:
        found = frozen.get(frozen_as)
        first = ((found["knn_top1"],), (found["linear_top1"],)) if found else ((), ())
        return (*first, *(tuple(tuned.get(tuned_as, {}).get(count, ())) for count in counts))

    rows = [
        Row(r["title"], (_seconds(r["cpu_s"]), f"{r['images']:,}", _metric(r)), shares(name, name))
        for name in PRETRAININGS
        if (r := trained.get(name))
    ]
    rows.append(Row("untrained / from scratch", ("0", "0", ""), shares("untrained", "scratch"), True))
    columns = ("kNN", "linear", *(f"{count} per class" for count in counts))
    return AccuracyTable(("CPU s", "images seen", "pretext task"), columns, tuple(rows))


def semisup_table(records: Sequence[Record]) -> AccuracyTable:
    """Return a row per method with labels, the supervised one first."""
    trained = [r for r in records if r["kind"] == "trained"]
    counts = sorted({r["labels_per_class"] for r in trained})
    rows = []
    for name in TRAININGS:
        own = [r for r in trained if r["method"] == name]
        if own:
            by_count = (tuple(r["top1"] for r in own if r["labels_per_class"] == c) for c in counts)
            facts = (_seconds(statistics.fmean(r["cpu_s"] for r in own)), f"{own[0]['steps']:,}")
            rows.append(Row(own[0]["title"], facts, tuple(by_count), name == "supervised"))
    return AccuracyTable(("CPU s", "steps"), tuple(f"{c} per class" for c in counts), tuple(rows))


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}"


def _metric(record: Record) -> str:
    value = float(record["metric"])
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{record['metric_name']} {text}"


def markdown(table: AccuracyTable) -> str:
    """Return the table in markdown: accuracies in per cent, the best of each column in bold."""
    heading = ("method", *table.facts, *table.columns)
    rule = ("---", *("--:" for _ in heading[1:]))
    lines = [heading, rule]
    for row in table.rows:
        cells = (_cell(s, table.best(i)) for i, s in enumerate(row.shares))
        lines.append((row.title, *row.facts, *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(shares: Sequence[float], best: float) -> str:
    if not shares:
        return "-"
    mean = statistics.fmean(shares)
    text = f"{100 * mean:.1f}"
    if len(shares) > 1:
        text += f" ± {100 * statistics.stdev(shares):.1f}"
    return f"**{text}**" if mean == best else text


def draw(table: AccuracyTable) -> Picture:
    """Draw a panel per column of accuracies, a bar per method, and a line where the baseline is."""
    names = [row.title for row in table.rows]

    def panels(figure: Any, palette: Palette) -> None:
        for column, title in enumerate(table.columns):
            axes = figure.add_subplot(1, len(table.columns), column + 1)
            values = [100 * statistics.fmean(row.shares[column] or (0.0,)) for row in table.rows]
            colors = [palette.second if row.baseline else palette.accent for row in table.rows]
            axes.barh(range(len(names)), values, color=colors, height=0.62)
            for row, value in zip(table.rows, values, strict=True):
                if row.baseline:
                    axes.axvline(value, color=palette.second, linewidth=0.9, linestyle="--")
            axes.invert_yaxis()
            axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
            axes.set_title(title, loc="left", fontsize=8, color=palette.ink)
            dress(axes, palette)
            axes.grid(False)

    size = (9.6, 0.7 + 0.27 * len(names))
    caption = "test accuracy, %; the dashed line is the baseline"
    return draw_picture(panels, size, f"Test accuracy of {', '.join(names)}", caption)


def write_page(path: Path, records: Iterable[Record]) -> None:
    """Write the table and the plot of a comparison beside its records.

    Args:
        path: of the records; the table and the plot get its name with .md and .png.
        records: of one family.
    """
    found = list(records)
    family = semisup_table if any(r["kind"] == "trained" for r in found) else selfsup_table
    table = family(found)
    write_atomic(path.with_suffix(".md"), markdown(table).encode())
    if table.columns and table.rows:
        save_picture(path.with_suffix(".png"), draw(table))
