r"""Time the balanced selection of pseudo-labels on random scores.

Example:
    python tools/bench_select.py --rows 512000 --classes 1000 --json select.jsonl
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig


@dataclass(frozen=True)
class Config(RecordConfig):
    """Measure the CPU seconds of one thread and the peak memory; drawing the scores is not timed."""

    rows: Count = 512_000
    """Images to select from, a row of scores each. Report: 512,000."""
    classes: Count = 1000
    """Number of classes."""
    top_k: Count = 10
    """Classes with the highest scores that are kept per image. Report: 10."""
    per_class: Count = 500
    """Images kept per class. Report: up to 500."""
    chunk: Count = 8192
    """Images per update of the selection; stands for the batch size of a network."""
    runs: Count = 5
    """Repetitions; median and range are printed, and the record has all of them."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch

from engine.labels.select import BalancedSelector
from tools.bench.records import append_record


def time_once(config: Config, seed: int) -> float:
    """Return the CPU seconds of one selection, without drawing its scores."""
    rng = np.random.default_rng(seed)
    selector = BalancedSelector(config.classes, config.top_k, config.per_class)
    seconds = 0.0
    for first in range(0, config.rows, config.chunk):
        rows = np.arange(first, min(first + config.chunk, config.rows))
        scores = rng.random((len(rows), config.classes), np.float32)
        start = time.process_time()
        selector.update(scores, rows)
        seconds += time.process_time() - start
    start = time.process_time()
    selector.finish()
    return seconds + time.process_time() - start


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    torch.set_num_threads(1)
    seconds = [time_once(config, seed) for seed in range(config.runs)]
    unit = 1024 if sys.platform == "darwin" else 1
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 1024
    median_s = float(np.median(seconds))
    print(
        f"{config.rows:,} x {config.classes:,} scores, top {config.top_k}, {config.per_class} per class: "
        f"{median_s:.2f} s median of {config.runs} ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"peak {peak_mib:,.0f} MiB, one thread"
    )
    append_record(config.json, {**asdict(config), "json": None, "seconds": seconds, "peak_mib": peak_mib})


if __name__ == "__main__":
    run_command(main)
