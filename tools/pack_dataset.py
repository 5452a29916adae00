"""Pack images into shards with an index.

Example:
    python tools/pack_dataset.py --splits train=images/train test=images/test --out packs/mine
    python tools/pack_dataset.py --splits train,val,test=photos:0.8,0.1,0.1 --out packs/mine
"""

from __future__ import annotations

import atexit
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from loaders.packs.manifest import MANIFEST_NAME
from loaders.packs.reasons import MAX_PIXELS
from loaders.packs.sources.naming import check_source


@dataclass(frozen=True)
class Config:
    """Pack images into shards with an index; a run that was interrupted resumes when started again."""

    splits: tuple[str, ...]
    """NAME=PATH of every split. PATH is a folder, .tar, .tar.gz or .zip, where the class of a file is its
    folder and files in the root have no class; wds:shards/x-{000..012}.tar for WebDataset shards; a .beton; a
    list of paths (.csv, .tsv, .txt, .jsonl, .parquet); tables of images (.parquet, .arrow), or a folder of
    them; or any of these on s3://, gs://, https:// or hf://. #folder chooses a folder inside an archive,
    #name a split of a list or of a folder of tables, #labels=FILE gives labels (.pt, .npy, .csv, .txt) to the
    images of a folder or an archive. train,test=PATH:0.8 divides the images of a PATH, class by class, and
    keeps copies of an image in one split; train,val,test=PATH:0.8,0.1,0.1 makes three splits."""
    out: str
    """Folder of the pack, or a remote place such as s3://bucket/pack. Without --append, it must not
    exist yet, unless an earlier run of the same command made it."""
    format: Literal["webdataset", "ffcv"] = "webdataset"
    """Format of the shards: webdataset writes .tar files, which DALI reads too, ffcv writes .beton files."""
    max_side: int | None = None
    """Shrink images whose longer side is over this many pixels."""
    short_side: tuple[str, ...] = ()
    """Shrink images whose shorter side is over this many pixels; train=256 sets it for one split alone."""
    crop_square: bool = False
    """Keep the largest square in the middle of each image."""
    quality: tuple[str, ...] = ()
    """JPEG quality of re-encoded images, 95 by default; train=90 sets it for one split alone. With a size
    limit or --crop-square, baseline JPEG images whose size stays the same are copied byte for byte; otherwise
    --quality re-encodes every image."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """raw stores decoded pixels: the pack is larger, and reading it needs no decoding."""
    damaged: Literal["repair", "quarantine"] = "repair"
    """What happens to a JPEG that decodes with a warning: repair decodes it, as other readers do, and
    re-encodes it; quarantine refuses it. Both refuse an image that has lost over a hundredth of its
    pixels."""
    max_pixels: int = MAX_PIXELS
    """Refuse images with more pixels (decompression bombs)."""
    image_column: str | None = None
    """Column of lists and tables with the paths or the bytes of the images; by default found by its name."""
    label_column: str | None = None
    """Column of lists and tables with the labels; for WebDataset samples, a member (txt) or JSON field."""
    multi_label: bool = False
    """Images have several labels each: lists, or texts split at |, ; or commas. A separate table keeps them;
    recipes learn one class per image and refuse such a pack."""
    seed: int = 0
    """Seed of the division of a PATH among several splits."""
    append: bool = False
    """Add new splits, or more images of existing splits, to the finished pack at --out; existing shards are
    not rewritten."""
    near: bool = False
    """Also find images that look the same but have different bytes, and keep them in one split of a divided
    PATH; decodes every image once more."""
    fail_on: tuple[str, ...] = ()
    """Faults of the finished pack for which the exit code is 1: leak, duplicates, corrupt."""
    shard_size_mb: float = 64.0
    """Approximate size of a shard, in 10^6 bytes."""
    executor: Literal["processes", "ray"] = "processes"
    """Where packing runs. processes: on this machine; ray: on the cluster at RAY_ADDRESS, or without it on a
    new cluster on this machine. The pack is the same."""
    staging: Path | None = None
    """Local folder in which a remote pack is prepared; with Ray, a folder that all machines share."""
    workers: int = 0
    """Number of processes and threads, 0 for one per core; the pack is the same for any number."""

    def check_places(self) -> None:
        """Refuse sources that `check_source` refuses; without --append, a finished pack needs none."""
        for text in self.splits if self.append or not (Path(self.out) / MANIFEST_NAME).is_file() else ():
            if source := text.partition("=")[2]:
                check_source(source)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)
    # Imports and packing make many objects but few reference cycles. Searching for cycles took a quarter of
    # the time of a short run.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from loaders.common.tables import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.errors import UserError
from loaders.common.next_step import say_next
from loaders.packs import open_pack
from loaders.packs.append import append_to_pack
from loaders.packs.image import ImagePolicy
from loaders.packs.manifest import QUARANTINE_NAME, Manifest, read_manifest
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits, with_own_options
from loaders.packs.sources.table_columns import ColumnOptions
from loaders.packs.stores.connect import is_remote
from loaders.packs.stores.upload import default_staging
from tools.packing.inspect import faults_found, inspect_pack, parse_faults


def main() -> int:
    """Parse the command line, pack, and print what was packed."""
    config = command_line(Config, __doc__)
    options, fail_on = options_of(config), parse_faults(config.fail_on)
    console = Console(soft_wrap=True)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    before = read_manifest(Path(config.out)).num_inputs if config.append else 0
    start = time.perf_counter()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
            task = bar.add_task("packing", total=None)
            work = append_to_pack if config.append else pack_dataset
            manifest = work(options, lambda done, total: bar.update(task, completed=done, total=total))
    except KeyboardInterrupt:
        console.print("interrupted: start the same command again, it resumes")
        return 130
    begun = bar.tasks[0].total is not None  # for a pack that was finished before, no progress is reported
    print_summary(console, config.out, manifest, time.perf_counter() - start if begun else None, before)
    if options.upload is not None:
        return 0
    pack = open_pack(config.out)
    findings, quarantine = inspect_pack(pack, config.near, config.workers, console)
    faults = faults_found(findings, quarantine, fail_on)
    for line in faults:
        print(f"fault: {line}")
    say_next("tools/verify_pack.py", config.out)
    return 1 if faults else 0


def options_of(config: Config) -> PackOptions:
    """Return the packing options of the command line.

    Raises:
        UserError: an option is malformed, has no effect or contradicts another.
    """
    remote = is_remote(config.out)
    splits = parse_splits(config.splits, config.seed, config.near)
    divided = any(split.division for split in splits)
    if config.seed and not divided:
        raise UserError("--seed is for a PATH that is divided, as in train,test=photos:0.8: leave it out")
    splits, quality, short_side = with_own_options(splits, config.quality, config.short_side)
    if remote and (config.append or config.near or config.fail_on):
        raise UserError("--append, --near and --fail-on read the pack: pack into a folder, then copy it")
    if config.staging is not None and not remote:
        raise UserError(f"--staging is for remote packs, --out {config.out} is a folder: leave it out")
    staging = config.staging or (default_staging(config.out) if remote else Path(config.out))
    return PackOptions(
        splits=splits,
        out=staging,
        shard_format=config.format,
        policy=ImagePolicy(
            max_side=config.max_side,
            short_side=short_side,
            crop_square=config.crop_square,
            quality=quality,
            encoding=config.encoding,
            max_pixels=config.max_pixels,
            damaged=config.damaged,
        ),
        shard_size_mb=config.shard_size_mb,
        workers=config.workers,
        executor=config.executor,
        columns=ColumnOptions(config.image_column, config.label_column, config.multi_label),
        upload=config.out.rstrip("/") if remote else None,
    )


def print_summary(
    console: Console, out: str, manifest: Manifest, seconds: float | None, before: int = 0
) -> None:
    """Print the splits of a pack, what was done to its images, and how long packing took.

    `seconds` is None if the pack was finished by an earlier run. `before` is the number of inputs that the
    pack had before others were appended.
    """
    table = Table("split", "images", "labelled", "quarantined", "source")
    for split in manifest.splits:
        counts = (split.num_images, split.num_labeled, split.num_quarantined)
        table.add_row(split.name, *(f"{count:,}" for count in counts), split.source)
    print_table(console, table)
    actions = ", ".join(f"{count:,} {name}" for name, count in manifest.actions.items())
    number = len(manifest.classes)
    classes = f"{number} {'class' if number == 1 else 'classes'}"
    what = f"{classes}; {manifest.num_shards} {manifest.shard_format} shards"
    if seconds is None:
        console.print(f"{what}\nnothing to do: this command has finished {out} before")
    else:
        added = manifest.num_inputs - before
        inputs = f"{added:,} inputs added to {before:,}" if before else f"{added:,} inputs"
        console.print(f"{what}; {actions}")
        console.print(f"{inputs} in {seconds:.1f} s, {added / seconds:,.0f} images/s -> {out}")
    notes = [*manifest.notes]
    if number == 1:
        notes.append(f"only one class, {manifest.classes[0]!r}: no recipe can learn to tell it from others")
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if skipped := sum(split.num_skipped for split in manifest.splits):
        files = "1 file" if skipped == 1 else f"{skipped:,} files"
        console.print(f"{files} skipped, not images by name (such as notes and tables)")
    if manifest.num_quarantined:
        console.print(f"{manifest.num_quarantined:,} inputs quarantined, reasons in {out}/{QUARANTINE_NAME}")


if __name__ == "__main__":
    run_command(main)
