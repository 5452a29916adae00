"""Write the page of a table: markdown, a picture, and the file of its records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from engine.report.figures import Series, draw_label_efficiency, save_picture
from loaders.common.files import write_atomic
from tools.comparison.results import Record, write_lines
from tools.comparison.tables import AccuracyTable, Row, draw, markdown
from tools.reproduction.plan import LINES, ResultTable

_OVER = " (over its budget)"
_METHODS = {"knn": "nearest neighbours", "probe": "linear probe", "pseudo": "probe, rounds of pseudo-labels"}


def accuracy_table(table: ResultTable, records: Sequence[Record]) -> AccuracyTable:
    """Return the accuracies measured so far, a row per method or stage; what is not measured is left out."""
    measured = [r for r in records if r["kind"] == "row"]
    seeds = tuple(sorted({seed for column in table.seeds.values() for seed in column}))
    if any(row.results == "ablation" for row in table.rows):
        return _by_stage(table, measured, seeds)
    rows = []
    if any(row.results == "features" for row in table.rows):
        for method, title in _METHODS.items():
            found = [result for r in measured for result in r["results"] if result["method"] == method]
            facts = (_mean([r["cpu_s"] for r in measured]), _tried(measured))
            rows.append(Row(title + _over(measured), facts, _columns(table, found), method == "probe"))
    else:
        for row in table.rows:
            own = [r for r in measured if r["row"] == row.name]
            facts = (_mean([r["cpu_s"] for r in own]), _tried(own))
            for place, more in enumerate(LINES):  # by place, since a record may have an earlier title
                found = [{**r, **r["results"][place]} for r in own if len(r["results"]) > place]
                if found or not place:
                    title, columns = row.title + more + _over(own), _columns(table, found)
                    rows.append(Row(title, facts, columns, row.baseline and not place))
    kept = tuple(row for row in rows if any(row.shares) or row.title.endswith(_OVER))
    headings = tuple(map(_column_name, table.labels_per_class))
    num_seeds = tuple(len(table.seeds[count]) for count in table.labels_per_class)
    return AccuracyTable(("core s", "settings tried"), headings, kept, seeds, num_seeds)


def _over(records: Sequence[Record]) -> str:
    return _OVER if any(r["over_budget"] for r in records) else ""


def _tried(records: Sequence[Record]) -> str:
    """Return, as text, how many settings were tried for the rows of these records; 1 counts as none tried."""
    tried = {r["settings_tried"] for r in records}
    return " or ".join(sorted({str(count) if count > 1 else "none" for count in tried}))


def _columns(table: ResultTable, results: Sequence[Record]) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(r["top1"] for r in results if r["labels_per_class"] == count)
        for count in table.labels_per_class
    )


def _column_name(per_class: int) -> str:
    return f"{per_class} per class" if per_class else "all labels"


def _mean(seconds: Sequence[float]) -> str:
    return f"{statistics.fmean(seconds):,.0f}" if seconds else "-"


def _by_stage(table: ResultTable, measured: Sequence[Record], seeds: tuple[int, ...]) -> AccuracyTable:
    """Return one row per stage: the mean change of accuracy from the stage before, and its standard error."""
    stages = dict.fromkeys(result["title"] for r in measured for result in r["results"])
    top1 = {s: [r["top1"] for m in measured for r in m["results"] if r["title"] == s] for s in stages}
    rows, before = [], None
    for stage in stages:
        change, error = "", ""
        if before is not None:
            differences = [100 * (b - a) for a, b in zip(top1[before], top1[stage], strict=True)]
            change = f"{statistics.fmean(differences):+.1f}"
            if len(differences) > 1:
                error = f"{statistics.stdev(differences) / math.sqrt(len(differences)):.1f}"
        rows.append(Row(stage.replace("_", " "), (change, error), (tuple(top1[stage]),), stage == "scratch"))
        before = stage if stage != "scratch" else None  # no stage continues the training from scratch
    columns = tuple(map(_column_name, table.labels_per_class))
    return AccuracyTable(("change", "its standard error"), columns, tuple(rows), seeds)


def write_page(path: Path, table: ResultTable, records: Sequence[Record]) -> str:
    """Write records to `path`, and page (.md) and picture (.png) if a row is measured; return the page."""
    write_lines(path, list(records))
    found = accuracy_table(table, records)
    text = f"# {table.title}\n\n{_said(table, records)}\n\n{markdown(found)}" if found.rows else ""
    if not text:
        return "nothing is measured yet\n"
    write_atomic(path.with_suffix(".md"), text.encode())
    counts = [count for count in table.labels_per_class if count]
    if len(counts) < 3:
        save_picture(path.with_suffix(".png"), draw(found))
        return text
    series = []
    for row in found.rows:
        if not any(row.shares):
            continue
        spread = [statistics.stdev(s) if len(s) > 1 else 0.0 for s in row.shares]
        means = [statistics.fmean(s) if s else math.nan for s in row.shares]  # no line passes over a gap
        series.append(Series(row.title, counts, means, spread))
    if series:
        save_picture(path.with_suffix(".png"), draw_label_efficiency(series))
    return text


def _said(table: ResultTable, records: Sequence[Record]) -> str:
    """Return the sentences that say what all rows have in common: budget, trials of settings, machine."""
    machine = next((r for r in records if r["kind"] == "machine"), None)
    chosen = (
        f"Settings were tried for {table.trial_s:,.0f} core seconds each, on a quarter of {table.chosen_at} "
        "labels per class, seed 0."
        if any(r["settings_tried"] > 1 for r in records if r["kind"] == "row")
        else "No setting was tried here."
    )
    where = f" {machine['processor']}, {machine['precision']}, torch {machine['torch']}." if machine else ""
    return (
        f"Test accuracy in %, mean and standard deviation over seeds. A row has {table.budget_s:,.0f} core "
        f"seconds for all that it trains, pre-training included. {chosen}{where}"
    )
