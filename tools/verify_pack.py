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

from loaders.cores import available_cores
from loaders.errors import check_numbers, run_command
from loaders.packs import open_pack
from loaders.packs.audit import compare_with_source, decode_all
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack

_SHOWN_LINES = 20


@dataclass(frozen=True)
class Config:
    """Check every byte of a pack against its manifest."""

    pack: Annotated[Path, tyro.conf.Positional]
    """Folder of the pack."""
    decode: bool = False
    """Decode every image too, and compare its size with the index."""
    against: tuple[str, ...] = ()
    """NAME=PATH of splits and their sources, as they were given to pack_dataset: prove that every input is
    packed or quarantined, and that copied images have the bytes of their source."""
    workers: int = 0
    """Threads that read and hash, 0 for one per core."""

    def __post_init__(self) -> None:
        """Refuse numbers of threads that there are not."""
        check_numbers(self)


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
        if not differences and (config.decode or config.against):
            bar.update(task, description="decoding and comparing", total=None)
            differences = _look_closer(config)
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


def _look_closer(config: Config) -> list[str]:
    pack = open_pack(config.pack)
    differences = decode_all(pack, config.workers or available_cores()) if config.decode else []
    for split in parse_splits(config.against) if config.against else ():
        differences += compare_with_source(pack, split)
    return differences


if __name__ == "__main__":
    run_command(main)
