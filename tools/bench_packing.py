"""Compare our packer with other projects' writers and with a plain copying loop, which all take turns.

Example:
    python tools/bench_packing.py --source images96 --json packing.jsonl
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig
from tools.packing.writers import WRITERS


@dataclass(frozen=True)
class Config(RecordConfig):
    """Compare packers on the files of a class-folder tree."""

    source: Path
    """Folder with one folder of JPEG files per class."""
    max_side: Count | None = None
    """Shrink the longer side to this many pixels and encode with quality 90; without --max-side and
    --short-side, bytes are copied. The plain loop always copies."""
    short_side: Count | None = None
    """Shrink the shorter side to this many pixels and encode with quality 90."""
    writers: tuple[str, ...] = ("plain loop", "sluice tar", "sluice beton", "webdataset", "ffcv", "litdata")
    """Writers to compare; mosaicml can be named too if it is installed."""
    runs: Count = 5
    """Rounds; each writer runs once per round, and each round starts with another writer."""
    workers: int = 0
    """Processes or threads for writers that can use them, 0 for one per core."""
    scratch: Path | None = None
    """Folder for the output; by default the system's folder for temporary files."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, an empty list of writers, and an unusable --json or --scratch."""
        super().__post_init__()
        if not self.writers:
            raise UserError(f"writers: expected some of {', '.join(WRITERS)}, found none; name one")
        if self.scratch is not None and not self.scratch.is_dir():
            raise UserError(f"scratch: expected a folder at {self.scratch}, found none; make it")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from rich.console import Console
from rich.table import Table

from loaders.common.cores import available_cores
from loaders.common.tables import print_table
from tools.bench.process import environment, last_line, machine, now, versions, watched
from tools.bench.records import append_record
from tools.packing.writers import files

_LIMIT_S = 900.0
_PACKAGES = ("numpy", "simplejpeg", "pillow", "webdataset", "ffcv", "litdata", "mosaicml-streaming")
_CHILD = (
    "import json, sys, time, warnings\n"
    "from pathlib import Path\n"
    "warnings.simplefilter('ignore')\n"
    "from tools.packing.writers import WRITERS, Job\n"
    "if __name__ == '__main__':\n"
    "    name, source, out, max_side, short_side, workers = json.loads(sys.argv[2])\n"
    "    start = time.perf_counter()\n"
    "    WRITERS[name](Job(Path(source), Path(out), max_side, short_side, workers))\n"
    "    Path(sys.argv[1]).write_text(str(time.perf_counter() - start))\n"
)


def main() -> None:
    """Parse the command line, run the rounds, print the table."""
    config = command_line(Config, __doc__)
    unknown = [name for name in config.writers if name not in WRITERS]
    if unknown:
        known = ", ".join(WRITERS)
        raise UserError(f"writers: expected names among {known}, found {unknown[0]!r}; name some of these")
    if config.max_side is not None and config.short_side is not None:
        raise UserError("max_side: expected --max-side or --short-side, found both; leave one of them out")
    if not config.source.is_dir():
        raise UserError(f"--source {config.source} is not a folder: make one with tools/draw_images.py")
    loose = next((path for path in sorted(config.source.iterdir()) if not path.is_dir()), None)
    if loose is not None:
        raise UserError(f"--source {config.source}: expected class folders, found the file {loose}; move it")
    paths = [path for path, _ in files(config.source)]
    if not paths:
        raise UserError(f"--source {config.source} holds no files: make some with tools/draw_images.py")
    for path in paths:  # every run then finds the files in the page cache
        Path(path).read_bytes()
    records = []
    for run in range(config.runs):
        for place in range(len(config.writers)):
            name = config.writers[(run + place) % len(config.writers)]
            records.append(measure(config, name, run, len(paths)))
            append_record(config.json, records[-1])
    print_records(records)


def measure(config: Config, name: str, run: int, num_files: int) -> dict[str, Any]:
    """Run one writer in its own process and return its record."""
    with tempfile.TemporaryDirectory(dir=config.scratch) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        script, log, told = (Path(scratch) / file for file in ("run.py", "log", "seconds"))
        script.write_text(_CHILD)
        workers = config.workers or available_cores()
        sides = config.max_side, config.short_side
        job = json.dumps([name, os.fspath(config.source.resolve()), os.fspath(out), *sides, workers])
        environ = environment()
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are timed: let Python cache compiled modules
        command = [sys.executable, str(script), str(told), job]
        used = watched(command, environ, log, _LIMIT_S, cwd=Path(scratch))
        said, seconds = last_line(log), float(told.read_text()) if told.exists() else 0.0
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out, ignore_errors=True)
    record = {
        "writer": name,
        "run": run,
        "num_files": num_files,
        "max_side": config.max_side,
        "short_side": config.short_side,
        "workers": workers,
        "peak_mb": used.peak_own_bytes / 1e6,
        "cpu_s": used.cpu_s,
        "written_mb": written / 1e6,
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "time": now(),
    }
    if used.code != 0:
        return {**record, "status": "failed", "reason": said or f"exit code {used.code}"}
    return {**record, "status": "ok", "seconds": seconds, "img_per_s": num_files / seconds}


def print_records(records: list[dict[str, Any]]) -> None:
    """Print each writer's speed and its ratios to the plain loop and webdataset, CPU time and peak memory."""
    rates = {
        name: [r["img_per_s"] for r in records if r["writer"] == name and r["status"] == "ok"]
        for name in dict.fromkeys(r["writer"] for r in records)
    }
    medians = {name: statistics.median(values) for name, values in rates.items() if values}
    table = Table("writer", "images/s", "spread", "of plain loop", "x webdataset", "CPU us/image", "peak MB")
    for name, values in rates.items():
        mine = [r for r in records if r["writer"] == name]
        if not values:
            table.add_row(name, "failed", *[""] * 4, str(mine[-1]["reason"]))
            continue
        ratios = [
            f"{medians[name] / medians[base]:.2f}" if base in medians else "-"
            for base in ("plain loop", "webdataset")
        ]
        cpu = statistics.median(r["cpu_s"] / r["num_files"] * 1e6 for r in mine)
        peak = max(r["peak_mb"] for r in mine)
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        table.add_row(name, f"{medians[name]:,.0f}", spread, *ratios, f"{cpu:.1f}", f"{peak:,.0f}")
    print_table(Console(), table)


if __name__ == "__main__":
    run_command(main)
