"""Check every byte of a pack against its manifest; the exit code is 1 if something differs, else 0.

Example:
    python tools/verify_pack.py packs/mine
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from loaders.common.checks import check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.program import Positional, check_command_line, command_line
from loaders.packs.stores.connect import as_url


@dataclass(frozen=True)
class Config:
    """Check every byte of a pack against its manifest."""

    pack: Positional[str]
    """Folder of the pack."""
    decode: bool = False
    """Also decode every image and compare its height and width with the index."""
    against: tuple[str, ...] = ()
    """NAME=PATH of splits and their sources, as given to pack_dataset: also check that every input is packed
    or quarantined, and that copied images have the bytes of their source. If images were appended to a split,
    give all its sources in the order in which they were packed."""
    workers: int = 0
    """Threads that read, hash and decode, 0 for one per core."""

    def __post_init__(self) -> None:
        """Refuse a negative number of threads, and a pack in a store."""
        check_numbers(self)
        if as_url(self.pack) is not None:
            raise UserError(
                f"pack: expected a folder of this machine, found the URL {self.pack}; copy the pack "
                "here first (a loader checks each shard that it fetches)"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import Progress

from loaders.common.cores import available_cores
from loaders.packs import open_pack
from loaders.packs.audit import compare_with_source, decode_all
from loaders.packs.manifest import divisions_of, read_manifest
from loaders.packs.sources.spec import SplitSource, parse_splits
from loaders.packs.verify import verify_pack
from tools.command.first_training import say_training

_SHOWN_LINES = 20


def _sources(folder: Path, texts: tuple[str, ...]) -> dict[str, list[SplitSource]]:
    """Return the given sources by split; sources that were divided are divided as the manifest records."""
    found: dict[str, list[SplitSource]] = {}
    if not texts:
        return found
    manifest = read_manifest(folder)
    for split in parse_splits(texts, several=True):
        before = found.setdefault(split.split, [])
        if split.division is not None:
            number = sum(one.division is not None for one in before)
            seed, near = (divisions_of(manifest, split.split)[number:] or [(0, False)])[0]
            split = replace(split, division=split.division._replace(seed=seed, near=near))
        before.append(split)
    return found


def main() -> int:
    """Parse the command line, verify, and print what differs."""
    config = command_line(Config, __doc__)
    folder, start = Path(config.pack), time.perf_counter()
    workers = config.workers or available_cores()
    sources = _sources(folder, config.against)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task("verifying shards", total=None)
        damage = verify_pack(
            folder, workers, lambda done, total: bar.update(task, completed=done, total=total)
        )
        bar.update(task, description="decoding and comparing", total=None)
        differences: list[str] = []
        if not damage:
            pack = open_pack(folder)
            damage = decode_all(pack, workers) if config.decode else []
        if not damage:
            differences = [line for given in sources.values() for line in compare_with_source(pack, *given)]
    for line in [*damage, *differences][:_SHOWN_LINES]:
        print(f"differs: {line}")
    if len(damage) + len(differences) > _SHOWN_LINES:
        print(f"... and {len(damage) + len(differences) - _SHOWN_LINES} more")
    seconds = time.perf_counter() - start
    if damage:
        print(f"{folder} is damaged: restore the files above from a copy, or pack again", file=sys.stderr)
        return 1
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder} is whole: {size_mb:,.1f} MB in {seconds:.1f} s, {size_mb / seconds:,.0f} MB/s")
    if differences:
        print(
            f"{folder} differs from its source: see the lines above; --append adds what is missing",
            file=sys.stderr,
        )
        return 1
    for name, given in sources.items():
        count, origin = len(pack.split(name)), " and ".join(split.source for split in given)
        print(f"{count:,} images of split {name} compared with {origin}: nothing is missing")
    say_training(pack, folder)
    return 0


if __name__ == "__main__":
    run_command(main)
