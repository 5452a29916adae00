"""Check every byte of a pack against its manifest; exit code 0 when it is whole, 1 when it is not.

Example:
    python tools/verify_pack.py packs/mine
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from loaders.errors import run_command
from loaders.packs.verify import verify_pack
from loaders.packs.workers import available_cores

_SHOWN_LINES = 20


@dataclass(frozen=True)
class Config:
    """Check every byte of a pack against its manifest."""

    pack: Annotated[Path, tyro.conf.Positional]
    """Folder of the pack."""
    workers: int = 0
    """Threads that read and hash, 0 for one per core."""


def main() -> int:
    """Parse the command line, verify, and print what differs."""
    config = tyro.cli(Config, description=__doc__)
    start = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying shards", total=None)
        differences = verify_pack(
            config.pack,
            config.workers or available_cores(),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in differences[:_SHOWN_LINES]:
        print(f"differs: {line}")
    if len(differences) > _SHOWN_LINES:
        print(f"... and {len(differences) - _SHOWN_LINES} more")
    seconds = time.perf_counter() - start
    size_mb = sum(path.stat().st_size for path in config.pack.rglob("*") if path.is_file()) / 1e6
    if differences:
        print(
            f"{config.pack} is damaged: restore the files above from a copy, or pack again", file=sys.stderr
        )
        return 1
    print(f"{config.pack} is whole: {size_mb:,.1f} MB in {seconds:.1f} s, {size_mb / seconds:,.0f} MB/s")
    return 0


if __name__ == "__main__":
    run_command(main)
