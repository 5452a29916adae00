"""Draw images, pack, verify and open the large pack, stage by stage; record time, memory and files.

Memory is private memory (anonymous pages, summed over a stage's processes, sampled), without the page cache
and mapped files; it is not measured for the opening of packs.

Example:
    python tools/bench_scale.py --work scale --num-images 512000 --json scale.jsonl
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig

Stage = Literal["draw", "pack", "verify", "decode", "open", "synthetic"]


@dataclass(frozen=True)
class Config(RecordConfig):
    """Measure packing at scale."""

    work: Path
    """Folder for the drawn images and the packs."""
    stages: tuple[Stage, ...] = ("draw", "pack", "verify", "decode", "open", "synthetic")
    """Stages to run: `pack` needs the files of `draw`, the others need the pack. `decode`: verify, decoding
    every image too. `synthetic`: open an index of many empty rows."""
    num_images: Count = 512_000
    """Files to draw; one in a hundred of them is damaged."""
    format: Literal["webdataset", "ffcv"] = "webdataset"
    """Format of the shards."""
    synthetic_rows: Count = 100_000_000
    """Rows of the index that the stage `synthetic` makes of sparse files."""
    workers: int = 0
    """Processes or threads, 0 for one per core."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and paths that cannot be written."""
        super().__post_init__()
        check_folder(self.work, "work")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np

from loaders.common.cores import available_cores
from loaders.common.errors import UserError
from loaders.packs.columns import COLUMN_DTYPES, column_path
from loaders.packs.manifest import INDEX_FOLDER, SplitRange, read_manifest, write_manifest
from tools.bench.process import environment, machine, now, watched
from tools.bench.records import append_record

_TOOLS = Path(__file__).resolve().parent
_SAMPLE_S = 0.05
_OPENINGS = 9
_OPEN = (
    "import sys, time\n"
    "from loaders import open_pack\n"
    "start = time.perf_counter()\n"
    "pack = open_pack(sys.argv[1])\n"
    "print((time.perf_counter() - start) * 1e3, len(pack))\n"
)


def main() -> None:
    """Parse the command line and run the stages."""
    config = command_line(Config, __doc__)
    stages: dict[Stage, Callable[[Config], dict[str, Any]]] = {
        "draw": draw,
        "pack": pack,
        "verify": verify,
        "decode": lambda config: verify(config, "--decode"),
        "open": lambda config: opened(config.work / "pack"),
        "synthetic": synthetic,
    }
    for stage in config.stages:
        record = {
            "stage": stage,
            "num_images": config.num_images,
            **stages[stage](config),
            "workers": config.workers or available_cores(),
            "machine": machine(),
            "time": now(),
        }
        print(json.dumps(record))
        append_record(config.json, record)


def draw(config: Config) -> dict[str, Any]:
    """Draw the images with `draw_images.py`."""
    options = ["--out", config.work / "drawn", "--num-images", config.num_images]
    found = _run("draw_images.py", *options, "--workers", config.workers)
    return {**found, "img_per_s": config.num_images / found["seconds"]}


def pack(config: Config) -> dict[str, Any]:
    """Pack the images with `pack_dataset.py`."""
    out = config.work / "pack"
    shutil.rmtree(out, ignore_errors=True)
    splits = ["--splits", f"train={config.work / 'drawn'}", "--out", out, "--damaged", "quarantine"]
    found = _run("pack_dataset.py", *splits, "--format", config.format, "--workers", config.workers)
    manifest = read_manifest(out)
    return {
        **found,
        "img_per_s": manifest.num_inputs / found["seconds"],
        "inputs": manifest.num_inputs,
        "quarantined": manifest.num_quarantined,
        "shards": manifest.num_shards,
        "files": sum(1 for path in out.rglob("*") if path.is_file()),
        "size_mb": sum(path.stat().st_size for path in out.rglob("*")) / 1e6,
        "index_mb": sum(path.stat().st_size for path in (out / INDEX_FOLDER).iterdir()) / 1e6,
    }


def verify(config: Config, *options: str) -> dict[str, Any]:
    """Verify the pack with `verify_pack.py`; `options` are added to its command line."""
    found = _run("verify_pack.py", config.work / "pack", "--workers", config.workers, *options)
    num_images = read_manifest(config.work / "pack").num_images
    return {**found, "img_per_s": num_images / found["seconds"]}


def opened(path: Path) -> dict[str, Any]:
    """Open a pack in fresh processes; return median and longest milliseconds, and the number of rows."""
    read_manifest(path)  # for a missing pack, this raises an error of one line
    times = []
    for _ in range(_OPENINGS):
        command = [sys.executable, "-c", _OPEN, os.fspath(path)]
        text = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
        times.append(float(text.split()[0]))
    return {"open_ms": statistics.median(times), "open_ms_most": max(times), "rows": int(text.split()[1])}


def synthetic(config: Config) -> dict[str, Any]:
    """Make a pack whose index of `synthetic_rows` rows is in sparse files; return what `opened` measures."""
    manifest = read_manifest(config.work / "pack")
    out = config.work / "synthetic"
    shutil.rmtree(out, ignore_errors=True)
    (out / INDEX_FOLDER).mkdir(parents=True)
    rows = config.synthetic_rows
    for name, (dtype, row_shape) in COLUMN_DTYPES.items():
        shape = (rows + (name == "key_offset"), *row_shape)
        np.lib.format.open_memmap(out / column_path(name), "w+", dtype, shape, version=(2, 0))
    split = replace(
        manifest.splits[0],
        ranges=(SplitRange(0, rows, 0, manifest.num_shards, 0),),
        num_images=rows,
        num_labeled=0,
        num_quarantined=0,
    )
    made = replace(manifest, num_images=rows, num_inputs=rows, num_quarantined=0, splits=(split,))
    write_manifest(out, made)
    found = opened(out)
    shutil.rmtree(out)
    return found


def _run(tool: str, *options: object) -> dict[str, Any]:
    """Run one of our tools; return its seconds, CPU seconds and peak private memory.

    Raises:
        UserError: the tool failed.
    """
    command = [sys.executable, os.fspath(_TOOLS / tool), *map(str, options)]
    used = watched(command, environment(), sample_s=_SAMPLE_S)
    if used.code != 0:
        raise UserError(f"{tool} ended with exit code {used.code}: see its message above")
    return {"seconds": used.seconds, "cpu_s": used.cpu_s, "peak_anonymous_mb": used.peak_own_bytes / 1e6}


if __name__ == "__main__":
    run_command(main)
