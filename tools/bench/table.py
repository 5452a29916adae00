"""The table of a loader benchmark, made from its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Summary of one contender's runs.

    Attributes:
        kind: peer, backend or limit.
        images_per_s: median over runs.
        low, high: images per second of the slowest and of the fastest run.
        cpu_s_per_1000: median of the CPU seconds per 1,000 images.
        peak_anonymous_bytes: largest memory of any run, without the page cache.
        peak_rss_bytes: largest resident memory of any run.
        first_batch_s: median of the seconds to the first batch.
    """

    contender: str
    kind: str
    images_per_s: float
    low: float
    high: float
    cpu_s_per_1000: float
    peak_anonymous_bytes: int
    peak_rss_bytes: int
    first_batch_s: float
    runs: int

    @property
    def spread(self) -> float:
        """Return half the range between the fastest and the slowest run, relative to the median."""
        return (self.high - self.low) / 2 / self.images_per_s


def summarise(records: Sequence[Record]) -> list[Row]:
    """Return one row per contender that ran, fastest first."""
    rows = []
    for name in dict.fromkeys(record["contender"] for record in records):
        runs = [r for r in records if r["contender"] == name and "images_per_s" in r]
        if not runs:
            continue
        rates = [r["images_per_s"] for r in runs]
        rows.append(
            Row(
                contender=name,
                kind=runs[0]["kind"],
                images_per_s=median(rates),
                low=min(rates),
                high=max(rates),
                cpu_s_per_1000=median(r["cpu_s_per_1000"] for r in runs),
                peak_anonymous_bytes=max(r["peak_anonymous_bytes"] for r in runs),
                peak_rss_bytes=max(r["peak_rss_bytes"] for r in runs),
                first_batch_s=median(r["first_batch_s"] for r in runs),
                runs=len(runs),
            )
        )
    return sorted(rows, key=lambda row: -row.images_per_s)


def reference_of(rows: Sequence[Row]) -> Row | None:
    """Return the row that ratios refer to: our fastest backend, or the fastest peer if none of ours ran."""
    for kind in ("backend", "peer"):
        for row in rows:
            if row.kind == kind:
                return row
    return None


def render(records: Sequence[Record]) -> Table:
    """Return the table of records that all have the same workload."""
    rows = summarise(records)
    reference = reference_of(rows)
    decode = next((row.images_per_s for row in rows if row.contender == "decode_only"), None)
    work = records[0]["workload"]
    num_runs = max((row.runs for row in rows), default=0)
    table = Table(
        title=f"{work['views']} at {work['resolution']} px, batch {work['batch_size']}, "
        f"{work['threads']} threads, {work['interpolation']}; {num_runs} runs",
        caption="images/s: source images per second, each giving all its views, median of runs; +-: half the "
        "range; MB: peak memory without and with the page cache it maps; page cache warm",
    )
    table.add_column("contender", no_wrap=True)
    faster = f"{reference.contender} faster by" if reference else "ratio"
    columns = (
        "images/s",
        "+-",
        faster,
        "of decode",
        "CPU s per 1,000",
        "MB",
        "MB with cache",
        "first batch s",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        ratio = f"{reference.images_per_s / row.images_per_s:.2f}x" if reference else ""
        table.add_row(
            row.contender,
            f"{row.images_per_s:,.0f}",
            f"{row.spread:.1%}",
            "" if row.kind == "limit" else ratio,
            f"{row.images_per_s / decode:.1%}" if decode and row.contender != "copy_only" else "",
            f"{row.cpu_s_per_1000:.2f}",
            f"{row.peak_anonymous_bytes / 2**20:,.0f}",
            f"{row.peak_rss_bytes / 2**20:,.0f}",
            f"{row.first_batch_s:.2f}",
        )
    return table


def notes(records: Sequence[Record]) -> list[str]:
    """Return lines on contenders that are absent or failed, differing pixels, and our fastest backend."""
    absent = [f"{r['contender']} {r['status']}: {r['reason']}" for r in records if r["status"] != "ok"]
    ran = [r for r in records if r["status"] == "ok"]
    different = [f"{r['contender']}: {r['differences']}" for r in ran if r["differences"]]
    return list(dict.fromkeys([*absent, *different, *_advice(records)]))


def _advice(records: Sequence[Record]) -> list[str]:
    """Return a line that names our fastest backend, or says that the two fastest are equal within the noise.

    The list is empty if fewer than two of our backends ran.
    """
    ours = [row for row in summarise(records) if row.kind == "backend"]
    if len(ours) < 2:
        return []
    first, second = ours[:2]
    if first.images_per_s * (1 - first.spread) <= second.images_per_s * (1 + second.spread):
        return [f"{first.contender} and {second.contender} are equally fast here within the noise"]
    return [f"fastest of our backends here: --backend {first.contender.split('_')[0]}"]
