"""Measure loaders on the same images and the same views: our backends, other projects' loaders, upper limits.

Example:
    python tools/bench_loaders.py --pack packs/mine --views barlow --resolution 96 --json loaders.jsonl

A rate is source images per second, where all views of an image count as one image; the page cache is warm.
These contenders take turns; each run is a process of its own, bound to as many cores as --num-threads.
`tools/plot_bench.py` draws the records.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count, Positive, check_whole
from loaders.common.cores import available_cores
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from tools.bench.names import BackendName, LimitName, PeerName
from tools.bench.records import RecordConfig
from tools.bench.workload import ImageEncoding, Interpolation, ViewSet


@dataclass(frozen=True)
class Config(RecordConfig):
    """Benchmark of loaders."""

    pack: Path | None = None
    """Folder of a pack to read; its split has JPEG images only, at least four batches of them."""
    split: str = ""
    """Split of the pack; the first by default."""
    images: Path | None = None
    """Instead of --pack: a folder of JPEG files, which are packed, repeated as --num-images says."""
    views: ViewSet = "barlow"
    """Set of views made of each image."""
    resolution: Count = 96
    """Side of a view in pixels; for tiles, the side of a cell."""
    batch_size: Count = 64
    """Images per batch."""
    num_threads: Count = field(default_factory=lambda: min(2, available_cores()))
    """Threads or worker processes of each contender, and cores it is bound to; by default at most two."""
    interpolation: Interpolation | None = None
    """Filter of the resized crop; by default bicubic for `barlow`, as in its paper, else bilinear."""
    encoding: ImageEncoding = "jpeg"
    """Form of the images that contenders read: JPEG, or pixels (raw), which some contenders cannot read."""
    backends: tuple[BackendName, ...] = ("cpu",)
    """Our own backends; those with gpu in their name need a CUDA device."""
    peers: tuple[PeerName, ...] = get_args(PeerName)
    """Other projects' loaders."""
    limits: tuple[LimitName, ...] = get_args(LimitName)
    """Upper limits, measured beside the loaders: decoding alone, copying alone."""
    runs: Count = 5
    """Rounds; in each, every contender that has not failed runs once."""
    seconds: Positive = 10.0
    """Timed seconds per run."""
    warmup_s: float = 2.0
    """Untimed seconds of batches before the timed ones; at least eight batches."""
    num_images: int = 0
    """With --images: images per epoch, repeating the files; 0 repeats all files as often as they fit into
    256 MiB, or more often until they fill four batches."""
    cache: Path = Path("runs/bench")
    """Folder for the pack of --images and for copies in other formats; kept for the next benchmark."""

    def check_places(self) -> None:
        """Refuse settings that cannot be measured, before anything is loaded."""
        if (self.pack is None) == (self.images is None):
            raise UserError("images: expected one of --pack and --images, found neither or both; give one")
        if self.images and not self.images.is_dir():
            raise UserError(f"--images {self.images}: expected a folder, found none; check the path")
        remedy = "contenders are bound to as many cores as they have threads: lower --num-threads"
        check_whole("num_threads", self.num_threads, 1, available_cores(), remedy)
        check_folder(self.cache, "cache")
        if not self.backends + self.peers + self.limits:
            raise UserError(
                "contenders: expected at least one, found none; name --backends, --peers or --limits"
            )
        super().check_places()


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from rich.console import Console
from rich.progress import track

from tools.bench.contender import find_contender
from tools.bench.corpus import open_corpus, pack_images
from tools.bench.harness import Benchmark, Record, prepare, rounds
from tools.bench.records import append_record
from tools.bench.table import notes, render
from tools.bench.workload import Workload


def workload_of(config: Config) -> Workload:
    """Return the work that the command line describes."""
    usual: Interpolation = "bicubic" if config.views == "barlow" else "bilinear"
    return Workload(
        config.views,
        config.resolution,
        config.batch_size,
        config.num_threads,
        config.interpolation or usual,
        encoding=config.encoding,
    )


def main() -> int:
    """Run the benchmark that the options describe; return 1 if a run failed, else 0."""
    config = command_line(Config, __doc__)
    config.check_places()
    console = Console(width=None if sys.stdout.isatty() else 130)
    contenders = [find_contender(name) for name in (*config.limits, *config.backends, *config.peers)]
    pack = config.pack
    if config.images:
        pack = pack_images(config.images, config.cache, config.batch_size, config.num_images)
    assert pack is not None
    corpus = open_corpus(pack, config.split, config.cache, config.batch_size)
    workload = workload_of(config)
    benchmark = Benchmark(contenders, workload, corpus, config.runs, config.seconds, config.warmup_s)
    absent = prepare(benchmark)
    records: list[Record] = []
    total = config.runs * (len(contenders) - len(absent))
    measured = track(rounds(benchmark, absent), "measuring", total, console=console)
    for record in chain(absent.values(), measured):
        records.append(record)
        append_record(config.json, record)
    console.print(render(records))
    for note in notes(records):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return 1 if any(record["status"] == "failed" for record in records) else 0


if __name__ == "__main__":
    run_command(main)
