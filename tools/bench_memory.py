"""Measure the memory that a loader adds to a process, and whether it grows over many epochs.

Example:
    python tools/bench_memory.py packs/mine --resolution 224 --batch-size 256

Memory is the anonymous memory of the process (RssAnon), sampled every few milliseconds. The page cache,
through which a mapped pack is read, does not count, since the system can reclaim it at any time. Linux only.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import Positional, check_command_line, command_line
from loaders.options import DTypeName
from tools.bench.records import RecordConfig


@dataclass(frozen=True)
class Config(RecordConfig):
    """Memory of a loader of two Barlow views."""

    pack: Positional[Path]
    """Pack whose first split is read."""
    resolution: Count = 224
    """Side of a view in pixels."""
    batch_size: Count = 256
    """Images per batch."""
    prefetch: Count = 1
    """Batches that are prepared ahead of the one in use."""
    epochs: Count = 100
    """Epochs to read."""
    num_threads: Count = 2
    """Threads of the loader."""
    dtypes: tuple[DTypeName, ...] = get_args(DTypeName)
    """Dtypes of the views to measure, each with its own loader."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.errors import UserError
from loaders.views import presets
from tools.bench.process import machine
from tools.bench.records import append_record

MEGABYTE = 2**20
SAMPLE_S = 0.005


@dataclass
class Memory:
    """Anonymous memory of the process in bytes."""

    before: int  # before the first epoch, with the loader built
    early: int = 0  # peak of the first tenth of the epochs
    late: int = 0  # peak of the last tenth of the epochs


def anonymous_bytes() -> int:
    """Return the anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/self/status: expected a line RssAnon, found none; this tool needs Linux")


@contextmanager
def peak() -> Iterator[list[int]]:
    """Sample the memory in a thread; the one value of the yielded list is the largest sample so far."""
    found, done = [anonymous_bytes()], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            found[0] = max(found[0], anonymous_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def measure(config: Config, dtype: DTypeName) -> Memory:
    """Read all epochs with one loader of this dtype; return the memory of this process."""
    pack = open_pack(config.pack)
    split = pack.split(pack.splits[0])
    if len(split) < config.batch_size:
        raise UserError(
            f"--batch-size: expected at most the {len(split)} images of split {split.name!r}, found "
            f"{config.batch_size}; lower it or take a larger pack"
        )
    views = (presets.barlow_a(config.resolution), presets.barlow_b(config.resolution))
    loader = build_loader(
        split,
        views,
        config.batch_size,
        options=LoaderOptions(seed=0, dtype=dtype, num_threads=config.num_threads, prefetch=config.prefetch),
    )
    memory = Memory(anonymous_bytes())
    tenth = max(1, config.epochs // 10)
    for epoch in range(config.epochs):
        with peak() as found:
            for _ in loader.epoch(epoch):
                pass
        if epoch < tenth:
            memory.early = max(memory.early, found[0])
        if epoch >= config.epochs - tenth:
            memory.late = max(memory.late, found[0])
    loader.close()
    return memory


def main() -> None:
    """Measure each of the dtypes that --dtypes names."""
    config = command_line(Config, __doc__)
    for dtype in config.dtypes:
        memory = measure(config, dtype)
        print(
            f"{dtype:9} loader {(memory.late - memory.before) / MEGABYTE:6.0f} MiB, process "
            f"{memory.late / MEGABYTE:6.0f} MiB; first epochs {memory.early / MEGABYTE:6.0f} MiB"
        )
        settings = {"batch_size": config.batch_size, "resolution": config.resolution}
        settings |= {"prefetch": config.prefetch, "epochs": config.epochs, "threads": config.num_threads}
        record = {"tool": "bench_memory", "dtype": dtype, **settings, **asdict(memory), **machine()}
        append_record(config.json, record)


if __name__ == "__main__":
    run_command(main)
