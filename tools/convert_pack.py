"""Convert a pack between the two shard formats; the bytes of every image stay the same.

Example:
    python tools/convert_pack.py packs/mine --format ffcv --out packs/mine-ffcv
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.train.run_config import PackConfig
from loaders.common.errors import run_command
from loaders.common.program import Positional, check_command_line, command_line


@dataclass(frozen=True)
class Config(PackConfig):
    """Convert a pack; an interrupted run resumes when it is started again."""

    pack: Positional[Path]
    """Folder of the pack to read."""
    out: Path
    """Folder of the new pack."""
    format: Literal["webdataset", "ffcv"]
    """Format of the new pack's shards."""
    shard_size_mb: float = 64.0
    """Approximate size of a shard, in 10^6 bytes."""
    workers: int = 0
    """Number of processes and threads, 0 for one per core; the pack is the same for any number."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from rich.console import Console
from rich.progress import Progress

from loaders.common.next_step import say_next
from loaders.packs.convert import convert_pack


def main() -> None:
    """Parse the command line and convert."""
    config = command_line(Config, __doc__)
    start = time.perf_counter()
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("converting", total=None)
        manifest = convert_pack(
            config.pack,
            config.out,
            config.format,
            config.shard_size_mb,
            config.workers,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - start
    print(
        f"{manifest.num_images:,} images in {manifest.num_shards} {config.format} shards in {seconds:.1f} s"
    )
    say_next("tools/verify_pack.py", config.out)


if __name__ == "__main__":
    run_command(main)
