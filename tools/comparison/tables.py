"""The markdown table and the plot of a comparison, made from its records."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.evaluate.few_labels import mean_and_spread
from engine.report.figures import draw_picture, dress, save_picture
from engine.report.page import Picture
from engine.report.theme import Palette
from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from tools.comparison.methods import PRETRAININGS, TRAININGS
from tools.comparison.results import Record

_SELFSUP = ("pretraining", "frozen", "fine_tuned")


@dataclass(frozen=True)
class Row:
    """One method of a table.

    Attributes:
        facts: cells other than accuracies.
        shares: for each column, the accuracies in [0, 1] of all seeds; empty if nothing was measured.
        baseline: whether the other methods are compared with this one.
    """

    title: str
    facts: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    baseline: bool = False


@dataclass(frozen=True)
class AccuracyTable:
    """A table of methods.

    Attributes:
        facts: headings of the columns before the accuracies.
        columns: headings of the columns of accuracies.
        num_seeds: number of seeds of each column; by default that of `seeds`.
    """

    facts: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    num_seeds: tuple[int, ...] = ()

    def best(self, column: int) -> float:
        """Return the highest mean accuracy of a column."""
        return max((statistics.fmean(r.shares[column]) for r in self.rows if r.shares[column]), default=0.0)


def selfsup_table(records: Sequence[Record]) -> AccuracyTable:
    """Return the table of self-supervised methods; the baseline without pre-training is last."""
    measured = sorted((r for r in records if r["kind"] in _SELFSUP), key=lambda r: r["seed"])
    frozen = [r for r in measured if r["kind"] == "frozen"]
    tuned: dict[tuple[str, int], dict[int, float]] = {}
    for record in (r for r in measured if r["kind"] == "fine_tuned"):
        for result in record["results"]:
            by_seed = tuned.setdefault((record["method"], result["labels_per_class"]), {})
            by_seed[record["seed"]] = result["top1"]
    counts = sorted({count for _, count in tuned})

    def shares(frozen_as: str, tuned_as: str) -> tuple[tuple[float, ...], ...]:
        found = [r for r in frozen if r["method"] == frozen_as]
        first = (tuple(r[name] for r in found) for name in ("knn_top1", "linear_top1"))
        return (*first, *(tuple(tuned.get((tuned_as, count), {}).values()) for count in counts))

    rows = []
    for name in PRETRAININGS:
        own = [r for r in measured if r["kind"] == "pretraining" and r["method"] == name]
        if own:
            facts = (_seconds(own), f"{own[0]['images']:,}", _metric(own))
            rows.append(Row(own[0]["title"], facts, shares(name, name)))
    if rows:
        rows.append(Row("untrained / from scratch", ("0", "0", ""), shares("untrained", "scratch"), True))
    columns = ("kNN", "linear", *(f"{count} per class" for count in counts))
    return AccuracyTable(("CPU s", "images seen", "pretext task"), columns, tuple(rows), _seeds(measured))


def semisup_table(records: Sequence[Record]) -> AccuracyTable:
    """Return the table of semi-supervised methods; the supervised baseline, if measured, is first."""
    trained = [r for r in records if r["kind"] == "trained"]
    counts = sorted({r["labels_per_class"] for r in trained})
    rows = []
    for name in TRAININGS:
        own = [r for r in trained if r["method"] == name]
        if own:
            by_count = (tuple(r["top1"] for r in own if r["labels_per_class"] == c) for c in counts)
            facts = (_seconds(own), f"{own[0]['steps']:,}")
            rows.append(Row(own[0]["title"], facts, tuple(by_count), name == "supervised"))
    columns = tuple(f"{c} per class" for c in counts)
    return AccuracyTable(("CPU s", "steps"), columns, tuple(rows), _seeds(trained))


def _seeds(records: Sequence[Record]) -> tuple[int, ...]:
    return tuple(sorted({r["seed"] for r in records}))


def _seconds(records: Sequence[Record]) -> str:
    return f"{statistics.fmean(r['cpu_s'] for r in records):.0f}"


def _metric(records: Sequence[Record]) -> str:
    value = statistics.fmean(r["metric"] for r in records)
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{records[0]['metric_name']} {text}"


def markdown(table: AccuracyTable) -> str:
    """Return the table in markdown: accuracies in per cent, the best one of each column in bold.

    With several seeds, a cell has the mean ± sample standard deviation, and the number of seeds if some are
    missing.
    """
    heading = ("method", *table.facts, *table.columns)
    rule = ("---", *("--:" for _ in heading[1:]))
    lines = [heading, rule]
    num_seeds = table.num_seeds or (len(table.seeds),) * len(table.columns)
    for row in table.rows:
        cells = (_cell(s, table.best(i), num_seeds[i]) for i, s in enumerate(row.shares))
        lines.append((row.title, *row.facts, *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(shares: Sequence[float], best: float, num_seeds: int) -> str:
    if not shares:
        return "-"
    mean = statistics.fmean(shares)
    text = f"{100 * mean:.1f}"
    if len(shares) > 1:
        text += f" ± {100 * statistics.stdev(shares):.1f}"
    text = f"**{text}**" if mean == best else text
    return text if len(shares) == num_seeds else f"{text} ({len(shares)} of {num_seeds})"


def draw(table: AccuracyTable) -> Picture:
    """Draw a panel per column of accuracies, with a bar per method and a dashed line at the baseline."""
    names = [row.title for row in table.rows]

    def panels(figure: Any, palette: Palette) -> None:
        for column, title in enumerate(table.columns):
            axes = figure.add_subplot(1, len(table.columns), column + 1)
            values = [100 * statistics.fmean(row.shares[column] or (0.0,)) for row in table.rows]
            spreads = [100 * mean_and_spread(row.shares[column] or (0.0,))[1] for row in table.rows]
            colors = [palette.second if row.baseline else palette.accent for row in table.rows]
            spread = {"xerr": spreads, "ecolor": palette.ink, "error_kw": {"linewidth": 0.9}}
            axes.barh(range(len(names)), values, color=colors, height=0.62, **spread)
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
    if len(table.seeds) > 1:
        caption += f"; mean and standard deviation over seeds {', '.join(map(str, table.seeds))}"
    return draw_picture(panels, size, f"Test accuracy of {', '.join(names)}", caption)


def write_page(path: Path, table: AccuracyTable) -> None:
    """Write the table (.md) and the plot (.png) of a comparison beside its records at `path`.

    Raises:
        UserError: the table has no rows.
    """
    if not table.rows:
        raise UserError(f"table: expected measured methods for {path.name}, found none; see the errors above")
    write_atomic(path.with_suffix(".md"), markdown(table).encode())
    save_picture(path.with_suffix(".png"), draw(table))
