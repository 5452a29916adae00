"""Count what a pack holds, find copies and images in two splits, and write report.html into the pack.

Example:
    python tools/inspect_pack.py packs/mine --near --fail-on leak duplicates
    python tools/near_copies.py --pack packs/mine --init weights/lite0 --out runs/looks
    python tools/inspect_pack.py packs/mine --features runs/looks
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.train.run_config import PackConfig
from loaders.common.checks import check_numbers
from loaders.common.errors import run_command
from loaders.common.files import check_file
from loaders.common.program import Positional, check_command_line, command_line
from tools.packing.names import PAGE_NAME


@dataclass(frozen=True)
class Config(PackConfig):
    """Inspect a pack; the exit code is 1 if it has a fault that --fail-on names."""

    pack: Positional[Path]
    """Folder of the pack."""
    near: bool = False
    """Also find images that look the same but have different bytes; decodes every image."""
    fail_on: tuple[str, ...] = ()
    """Faults for which the exit code is 1: leak, duplicates, corrupt."""
    workers: int = 0
    """Threads that decode, 0 for one per core."""
    page: Path | None = None
    """File of the page; report.html in the pack by default."""
    features: tuple[Path, ...] = ()
    """Folders with features of the pack, as tools/near_copies.py and tools/probe.py write them. The page then
    also shows labels that the nearest neighbours doubt, and unlabelled images that are unlike every class."""

    def __post_init__(self) -> None:
        """Refuse a negative number of threads, and unusable paths."""
        check_numbers(self)
        check_file(self.pack / PAGE_NAME, "pack", writable=False)  # figures are printed even without a page
        if self.page is not None:
            check_file(self.page, "page")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from rich.console import Console

from loaders.packs import open_pack
from tools.command.first_training import say_training
from tools.packing.inspect import faults_found, inspect_pack, parse_faults


def main() -> int:
    """Parse the command line, inspect the pack, and print the findings."""
    config = command_line(Config, __doc__)
    pack, fail_on = open_pack(config.pack), parse_faults(config.fail_on)
    findings, quarantine = inspect_pack(
        pack, config.near, config.workers, Console(soft_wrap=True), config.page, config.features
    )
    faults = faults_found(findings, quarantine, fail_on)
    for line in faults:
        print(f"fault: {line}")
    say_training(pack, config.pack)
    return 1 if faults else 0


if __name__ == "__main__":
    run_command(main)
