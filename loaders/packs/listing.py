"""The listing: every input of every split, in order, kept on disk and cut into shards.

A shard is a run of consecutive lines, fixed before the first image is packed. Any worker, on any machine, can
therefore write any shard, and the bytes depend neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from loaders.common.errors import UserError
from loaders.common.files import atomic_file, partial_path, write_atomic
from loaders.packs.build_files import read_build_file
from loaders.packs.divided import divide_listing
from loaders.packs.image import ImagePolicy, prepare_image
from loaders.packs.labels.summary import LabelSummary
from loaders.packs.listing_lines import from_line, line_size, to_line
from loaders.packs.manifest import Manifest
from loaders.packs.options import PackOptions
from loaders.packs.reasons import BadImage, Reason
from loaders.packs.repeats import repeated_rows
from loaders.packs.sources.folder_classes import FolderClasses
from loaders.packs.sources.item import (
    MAX_FILE_BYTES,
    Source,
    SourceItem,
    is_hidden,
)
from loaders.packs.sources.label_file import LabeledSource
from loaders.packs.sources.layouts import lists_beside, resolve_layout
from loaders.packs.sources.naming import is_no_image_name
from loaders.packs.sources.spec import SplitSource, open_source
from loaders.packs.sources.table_columns import ColumnOptions

# Bytes that a sample needs besides its encoded image. In a tar: two headers, the block of the label, and half
# a block as the mean padding behind the image. In a beton: the metadata record and the allocation record.
_OVERHEAD_BYTES = {"webdataset": 1792, "ffcv": 48}
_RATIO_SAMPLES = 16
_ITEMS_AT_ONCE = 1024


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written: a run of consecutive lines of a split's listing.

    Attributes:
        number: number of the shard in its split.
        source: PATH of the split, as `resolve_layout` returns it.
        first_byte: where the run begins in the listing file.
        num_bytes: length of the run in the listing file.
        num_items: number of inputs in the run.
        input_bytes: total size of these inputs; unknown sizes are estimated.
        max_item_bytes: size of the largest input.
    """

    split: str
    number: int
    source: str
    first_byte: int
    num_bytes: int
    num_items: int
    input_bytes: int
    max_item_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first image is packed.

    Attributes:
        classes: class names of the pack.
        notes: what a user should know about sources and labels, one line each.
        skipped: for each split, the number of files whose names show that they are not images; the files of
            a divided source count for its first split.
    """

    classes: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    notes: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)


def listing_path(build: Path, split: str) -> Path:
    """Return the path of the listing of a split."""
    return build / f"listing-{split}.txt"


def spool_path(build: Path) -> Path:
    """Return the folder for local copies of sources that cannot be read in place."""
    return build / "spool"


def make_plan(options: PackOptions, base: Manifest | None = None) -> Plan:
    """List all splits, cut them into shards and write the plan; if a plan is there already, read it instead.

    Args:
        base: manifest of the pack to append to. Its classes keep their numbers, and new shards of its splits
            continue its shard numbers.

    Raises:
        UserError: bad input, such as a split without an image, or a damaged plan.
    """
    build, columns = options.build, options.columns
    path = build / "plan.json"
    if path.exists():
        return read_build_file(path, _parse_plan)
    summary = LabelSummary(() if base is None else base.classes, columns)
    shards: list[ShardPlan] = []
    skipped: dict[str, int] = {}
    notes: list[str] = []
    overhead = _OVERHEAD_BYTES[options.shard_format]
    for group in _groups(options.splits):
        resolved, said = resolve_layout(group[0].source, columns)
        source = open_source(resolved, spool_path(build), columns)
        parts = tuple(replace(split, source=resolved) for split in group)
        try:
            counts, num_skipped, more = _spool_group(build, parts, source, summary, options.num_workers)
            notes += more
            skipped |= dict(
                zip((split.split for split in parts), (num_skipped, *[0] * len(parts)), strict=False)
            )
            summary.say(_whole(parts), source, said, lists_beside(group[0].source))
            for split, num_items in zip(parts, counts, strict=True):
                own = split.policy(options.policy)
                # JPEG encoding makes no image much larger. So if all inputs fit into one shard, the encoded
                # images do too, and the ratio of sizes need not be estimated.
                is_known = own.keeps_sizes or (
                    own.encoding == "jpeg" and _fits(build, split, overhead, options.shard_bytes)
                )
                ratio = 1.0 if is_known else _output_ratio(build, split, source, own, num_items)
                first = 0 if base is None else base.next_shard_number(split.split)
                shards += _cut(build, split, ratio, overhead, options.shard_bytes, first)
        finally:
            source.close()
    plan = Plan(summary.classes(), tuple(shards), (*summary.notes(), *notes), skipped)
    write_atomic(path, json.dumps(asdict(plan)).encode())
    return plan


def _parse_plan(raw: Any) -> Plan:
    shards = tuple(ShardPlan(**shard) for shard in raw["shards"])
    return Plan(tuple(raw["classes"]), shards, tuple(raw.get("notes", ())), dict(raw.get("skipped", {})))


def _groups(splits: tuple[SplitSource, ...]) -> Iterator[tuple[SplitSource, ...]]:
    """Yield the splits in groups: those among which one source is divided, or a single split."""
    for split in splits:
        group = split.group()
        if split.split == group[0].split:
            names = [own.split for own in group]
            yield tuple(own for own in splits if own.split in names)


def _whole(group: tuple[SplitSource, ...]) -> SplitSource:
    """Return a group as one split, whose name is the names of its splits joined by commas."""
    return replace(group[0], split=",".join(split.split for split in group))


def _spool_group(
    build: Path, group: tuple[SplitSource, ...], source: Source, summary: LabelSummary, workers: int
) -> tuple[list[int], int, list[str]]:
    """Write a group's listings; return the numbers of inputs by split and of skipped files, and notes."""
    whole = _whole(group)
    num_items, num_skipped = _spool(build, whole, source, summary)
    division = whole.division
    if division is None:
        return [num_items], num_skipped, []
    listing = listing_path(build, whole.split)
    parts = [listing_path(build, split.split) for split in group]
    counts, notes = divide_listing(listing, parts, source, division, workers)
    listing.unlink()
    return counts, num_skipped, [f"{whole.source}: {note}" for note in notes]


def _spool(build: Path, split: SplitSource, source: Source, summary: LabelSummary) -> tuple[int, int]:
    """Write one listing and collect its classes; return the numbers of inputs and of skipped files."""
    listing, hashes = listing_path(build, split.split), partial_path(build / f"keys-{split.split}")
    num_items = num_skipped = 0
    labels = summary.begin(split.split, source)
    folders = FolderClasses() if source.labels_are_folders else None
    finds_files = source.labels_are_folders or isinstance(source, LabeledSource)
    with atomic_file(listing) as file, open(hashes, "wb") as hash_file:
        for block in _blocks(source.items()):
            lines, hashed = [], []
            for item in block:
                if folders is not None and not is_hidden(item):
                    folders.see(item.name)
                if is_no_image_name(item.name) and (is_hidden(item) or (finds_files and not item.problem)):
                    num_skipped += 1
                    continue
                if (text := labels.text(item.label)) != item.label:
                    item = item._replace(label=text)
                lines.append(to_line(item))
                hashed.append(hash(item.key))
            file.write(b"".join(lines))
            # Python's hashes differ from process to process; here they are compared within one process only.
            hash_file.write(array("q", hashed).tobytes())
            num_items += len(lines)
    if folders is not None:
        folders.refuse_others(split.source)
    if num_items == 0:
        others = f"only files whose names show that they are no images ({num_skipped})"
        what = others if num_skipped else "no file"
        raise UserError(f"split {split.split!r}: {split.source} holds {what}; expected at least one image")
    if folders is not None and (corrections := folders.corrections()):
        texts = {folder: labels.text(label) for folder, label in corrections.items()}
        _rewrite(listing, lambda _, item: _corrected(item, texts))
    labels.end(source, folders, split.source)
    _make_keys_distinct(listing, hashes, num_items)
    hashes.unlink()
    return num_items, num_skipped


def _corrected(item: SourceItem, labels: dict[str, str | None]) -> SourceItem:
    folder = item.name.rpartition("/")[0]
    return item._replace(label=labels[folder]) if folder in labels and not item.problem else item


def _blocks(items: Iterator[SourceItem]) -> Iterator[list[SourceItem]]:
    while block := list(islice(items, _ITEMS_AT_ONCE)):
        yield block


def key_hash(key: str) -> bytes:
    """Return the 8-byte BLAKE2b hash of a key."""
    return hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()


def _make_keys_distinct(listing: Path, hashes: Path, num_items: int) -> None:
    """Rename items that have the key of an earlier item; mark those of the same file as duplicates."""
    repeated = repeated_rows(np.memmap(hashes, np.uint64, "r", shape=(num_items,)))
    later = sorted(row for rows in repeated for row in rows.tolist())
    if not later:
        return
    lines = set(later)
    seen: dict[str, str] = {}  # name of the first item with each repeated key
    _rewrite(listing, lambda number, item: _distinct(item, seen) if number in lines else item)


def _rewrite(listing: Path, change: Callable[[int, SourceItem], SourceItem]) -> None:
    """Replace every item of a listing by `change(number, item)`; the first number is 0."""
    with open(listing, "rb") as old, atomic_file(listing) as new:
        for number, line in enumerate(old):
            new.write(to_line(change(number, from_line(line))))


def _distinct(item: SourceItem, seen: dict[str, str]) -> SourceItem:
    """Return the item with a key that no earlier item has; mark a file that is listed again as duplicate."""
    key, first = item.key, seen.get(item.key)
    if first is None:
        seen[key] = item.name
        return item
    number = 2
    while f"{key}%2F{number}" in seen:
        number += 1
    renamed = item._replace(key=f"{key}%2F{number}")
    seen[renamed.key] = item.name
    if first == item.name and not item.problem:
        return renamed._replace(problem="the same file was given before", reason=Reason.DUPLICATE)
    return renamed


@contextmanager
def listed(
    split: SplitSource, columns: ColumnOptions, within: Path | None = None
) -> Iterator[tuple[Source, Iterator[SourceItem]]]:
    """Open a source, and list its inputs with the keys that packing would give them.

    Args:
        within: folder for temporary files; the system's temporary folder by default.

    Raises:
        UserError: the source cannot be listed or has no image.
        OSError: there is no room for the listing.
    """
    with tempfile.TemporaryDirectory(prefix="listing-", dir=within) as scratch:
        build = Path(scratch)
        split = replace(split, source=resolve_layout(split.source, columns)[0])
        source = open_source(split.source, spool_path(build), columns)
        try:
            _spool_group(build, split.group(), source, LabelSummary((), ColumnOptions()), 1)
            path = listing_path(build, split.split)
            yield source, read_items(path, 0, path.stat().st_size)
        finally:
            source.close()


def read_items(path: Path, first_byte: int, num_bytes: int) -> Iterator[SourceItem]:
    """Yield the items in `num_bytes` bytes of a listing file, from byte `first_byte` on."""
    with open(path, "rb") as file:
        file.seek(first_byte)
        while num_bytes > 0:
            line = file.readline()
            num_bytes -= len(line)
            yield from_line(line)


def _cut(
    build: Path, split: SplitSource, ratio: float, overhead: int, shard_bytes: int, first_number: int
) -> list[ShardPlan]:
    """Cut a listing into runs of at least one item and about `shard_bytes` bytes of output at most."""
    shards: list[ShardPlan] = []
    first = position = count = taken = largest = 0
    filled = 0.0

    def close() -> None:
        shards.append(
            ShardPlan(
                split.split,
                first_number + len(shards),
                split.source,
                first,
                position - first,
                count,
                taken,
                largest,
            )
        )

    with open(listing_path(build, split.split), "rb") as file:
        for line in file:
            size = line_size(line)
            cost = size * ratio + overhead
            if count and filled + cost > shard_bytes:
                close()
                first, count, taken, largest, filled = position, 0, 0, 0, 0.0
            position += len(line)
            count, taken = count + 1, taken + size
            largest, filled = max(largest, size), filled + cost
    close()
    return shards


def _fits(build: Path, split: SplitSource, overhead: int, shard_bytes: int) -> bool:
    """Tell whether the inputs of a split, unchanged, fit into one shard."""
    filled = 0
    with open(listing_path(build, split.split), "rb") as file:
        for line in file:
            filled += line_size(line) + overhead
            if filled > shard_bytes:
                return False
    return True


def _output_ratio(
    build: Path, split: SplitSource, source: Source, policy: ImagePolicy, num_items: int
) -> float:
    """Estimate output bytes per input byte from a few evenly spaced images, the same ones in every run."""
    step = max(1, num_items // _RATIO_SAMPLES)
    with open(listing_path(build, split.split), "rb") as file:
        samples = [from_line(line) for line in islice(file, 0, None, step)]
    taken = made = 0
    for item in samples:
        if item.problem or not 0 <= item.size_bytes <= MAX_FILE_BYTES:
            continue
        try:
            image = prepare_image(source.read(item), policy)
        except BadImage:
            continue
        taken, made = taken + item.size_bytes, made + len(image.data)
    return made / taken if taken else 1.0
