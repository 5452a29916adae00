"""Measure what the guarantees cost: verification, time limits, resuming, order of an epoch, ranks' agreement.

Example:
    python tools/bench_guarantees.py --pack packs/mine --split train --json guarantees.jsonl
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count, Positive
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig


@dataclass(frozen=True)
class Config(RecordConfig):
    """Measure what the guarantees in docs/guarantees.md cost."""

    pack: Path
    """Folder of a pack in tar shards; its split needs at least one batch of images."""
    split: str = "train"
    """Split of the pack."""
    resolution: Count = 96
    """Side of the views in pixels."""
    batch_size: Count = 256
    """Images per step."""
    num_threads: Count = 2
    """Threads of the loader."""
    runs: Count = 50
    """Runs of each of three loaders in turns: without time limits, with them, and with verification too."""
    seconds: Positive = 0.4
    """Shortest duration of a run in seconds; a run goes on to the end of an epoch."""
    resume_rows: Count = 512_000
    """Least number of images in the pack for timing resumes; its shards are links to one shard of --pack."""
    order_rows: Count = 100_000_000
    """Images of the epoch whose order is computed."""
    ranks: Count = 2
    """Processes that agree before every step whether to stop; 1 leaves this measurement out."""
    agreements: Count = 5000
    """Timed agreements of the ranks."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.cores import available_cores
from loaders.common.errors import UserError
from loaders.common.tables import print_table
from loaders.order.permutation import permute
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.columns import COLUMN_DTYPES, write_columns
from loaders.packs.labels.tables import label_table_path
from loaders.packs.manifest import (
    SHARDS_FOLDER,
    TRUE_LABELS,
    SplitInfo,
    SplitRange,
    shard_file_name,
    write_manifest,
)
from loaders.views import presets
from tools.bench.process import machine
from tools.bench.records import append_record
from tools.bench.same_work import agreement_times

_ORDER_BLOCK = 1 << 20


def repeat_pack(pack: Pack, split: Split, num_rows: int, out: Path) -> Pack:
    """Make a pack of at least `num_rows` rows in `out` whose shards are links to one shard of `pack`."""
    rows = split.rows(np.arange(len(split)))
    shard = int(pack.columns.shard[rows[0]])
    rows = rows[pack.columns.shard[rows] == shard]
    num_shards = -(-num_rows // len(rows))
    num_rows = num_shards * len(rows)
    (out / SHARDS_FOLDER).mkdir(parents=True)
    for number in range(num_shards):
        name = shard_file_name("train", number, pack.manifest.shard_format)
        os.symlink(pack.shard_path(shard).resolve(), out / SHARDS_FOLDER / name)
    keys = [f"{i:08d}".encode() for i in range(len(rows))]

    def blocks() -> Iterator[dict[str, Any]]:
        for number in range(num_shards):
            block = {
                name: np.asarray(getattr(pack.columns, name)[rows])
                for name in COLUMN_DTYPES
                if "key" not in name
            }
            block["shard"] = np.full(len(rows), number, np.uint32)
            block["key_offset"] = np.arange(len(rows) + 1, dtype=np.uint64) * np.uint64(8)
            block["key_bytes"] = np.frombuffer(b"".join(keys), np.uint8)
            yield block

    files = write_columns(out, num_rows, 8 * num_rows, blocks())
    label = np.zeros(num_rows, np.int64)
    LabelTable.of(np.arange(num_rows), label, max(1, len(pack.classes))).write(
        out / label_table_path(TRUE_LABELS)
    )
    ranges = (SplitRange(0, num_rows, 0, num_shards, 0),)
    info = SplitInfo("train", "repeated", ranges, num_rows, num_rows, 0)
    write_manifest(
        out,
        replace(
            pack.manifest, num_images=num_rows, num_shards=num_shards, num_inputs=num_rows, num_quarantined=0,
            splits=(info,), files=tuple(files),
        ),
    )  # fmt: skip
    return open_pack(out)


def resume_times(folder: Path, config: Config) -> dict[str, float]:
    """Return the seconds from opening the pack to the first batch, for resumes at three steps of an epoch."""
    found = {}
    for where in ("first", "middle", "last"):
        start = time.perf_counter()
        with _loader(open_pack(folder).split("train"), config) as loader:
            steps = loader.steps_per_epoch
            step = {"first": 0, "middle": steps // 2, "last": steps - 1}[where]
            next(loader.epoch(3, step))
            found[where] = time.perf_counter() - start
    return found


def _loader(split: Split, config: Config, **changes: Any) -> Any:
    views = (presets.barlow_a(config.resolution), presets.barlow_b(config.resolution))
    return build_loader(
        split, views, config.batch_size, options=LoaderOptions(num_threads=config.num_threads, **changes)
    )


def order_cost(num_rows: int) -> tuple[float, int]:
    """Return the seconds to compute an epoch's order on all cores, and the growth of memory in bytes."""
    process = psutil.Process()
    permute(np.arange(8), num_rows, 0, 0)  # compiles the kernel before the timing
    before = process.memory_info().rss

    def block(first: int) -> int:
        permute(np.arange(first, min(num_rows, first + _ORDER_BLOCK)), num_rows, 0, 1)
        return int(process.memory_info().rss)

    start = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as threads:
        most = max(threads.map(block, range(0, num_rows, _ORDER_BLOCK)))
    return time.perf_counter() - start, most - before


# Counting damaged rows has no variant, since it takes no time while no row is damaged.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"timeout_s": 1e9},
    "time limits": {},
    "time limits and verification": {"verify": True},
}


def costs(split: Split, config: Config) -> dict[str, list[tuple[float, float]]]:
    """Return wall seconds and CPU seconds per image, one pair per run of every variant.

    All loaders stay open and take turns of whole epochs, so that drifts of the machine affect all alike.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    epoch = count()
    with ExitStack() as stack:
        loaders = {name: stack.enter_context(_loader(split, config, **VARIANTS[name])) for name in VARIANTS}
        for run in range(config.runs + 1):
            names = list(VARIANTS)
            for name in names[run % len(names) :] + names[: run % len(names)]:
                num_images, start, cpu_s = 0, time.perf_counter(), -time.process_time()
                while (elapsed_s := time.perf_counter() - start) < config.seconds:
                    num_images += sum(len(batch.index) for batch in loaders[name].epoch(next(epoch)))
                cpu_s += time.process_time()
                if run:  # the first round warms up
                    found[name].append((elapsed_s / num_images, cpu_s / num_images))
    return found


def cost(times: NDArray[np.float64], plain: NDArray[np.float64]) -> tuple[float, dict[str, float]]:
    """Return how much lower a variant's images per second are than the plain loader's, and its error.

    Args:
        times: float64 [runs], the variant's wall or CPU time per image.
        plain: float64 [runs], the plain loader's time, of the same kind and in the same rounds.

    Returns:
        The median over the runs in per cent, and a dict with its `standard_error`, estimated from the median
        absolute deviation. After a single run the dict is empty.
    """
    lost = 100 * (1 - plain / times)
    deviation = 1.4826 * float(np.median(np.abs(lost - np.median(lost))))
    error = {"standard_error": 1.2533 * deviation / math.sqrt(len(lost))} if len(lost) > 1 else {}
    return float(np.median(lost)), error


def main() -> None:
    """Measure, print a table and append the records."""
    config = command_line(Config, __doc__)
    pack = open_pack(config.pack)
    split = pack.split(config.split)
    if len(split) < config.batch_size:
        raise UserError(
            f"split {config.split}: expected {config.batch_size} images, found {len(split)}; lower "
            "--batch-size"
        )
    table = Table("measurement", "value")
    records: list[dict[str, Any]] = []

    def note(name: str, value: float, unit: str, **more: Any) -> None:
        error = f" ± {more['standard_error']:.2g}" if "standard_error" in more else ""
        table.add_row(name, f"{value:,.4g}{error} {unit}")
        records.append({"name": name, "value": value, "unit": unit, **more})

    runs = {name: np.array(found) for name, found in costs(split, config).items()}
    for name, found in runs.items():
        rates = 1 / found[:, 0]
        note(f"throughput, {name}", float(np.median(rates)), "images/s", each=rates.round(1).tolist())
        note(f"processor time, {name}", 1e6 * float(np.median(found[:, 1])), "us per image")
        for column, what in enumerate(("cost", "cost in processor time")):
            if name != "plain":
                lost, error = cost(found[:, column], runs["plain"][:, column])
                note(f"{what} of {name}", lost, "%", **error)
    folder = Path(tempfile.mkdtemp(dir=config.pack.parent))
    try:
        repeat_pack(pack, split, config.resume_rows, folder / "repeated")
        for where, seconds in resume_times(folder / "repeated", config).items():
            note(f"{config.resume_rows:,} rows: opening to first batch at the {where} step", seconds, "s")
    finally:
        shutil.rmtree(folder)
    seconds, size_bytes = order_cost(config.order_rows)
    note(f"order of {config.order_rows:,} rows", seconds, "s")
    note(f"order of {config.order_rows:,} rows, growth of memory", size_bytes / 1e6, "MB")
    if config.ranks > 1:
        times = 1e6 * agreement_times(config.ranks, config.agreements)
        shares = {"tenth": float(np.quantile(times, 0.1)), "nine_tenths": float(np.quantile(times, 0.9))}
        note(f"agreement of {config.ranks} ranks to begin a step", float(np.median(times)), "us", **shares)
    print_table(Console(), table)
    names = ("resolution", "batch_size", "num_threads", "runs", "seconds")
    settings = {name: getattr(config, name) for name in names}
    about = {"tool": "bench_guarantees", "pack": config.pack.name, **settings}
    for record in records:
        append_record(config.json, {**about, **record, **machine()})


if __name__ == "__main__":
    run_command(main)
