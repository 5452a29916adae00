"""The last step of packing: join the parts of all shards into index, labels, lists and manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import atomic_file
from loaders.packs.columns import COLUMN_DTYPES, write_columns
from loaders.packs.image import Action
from loaders.packs.labels.multi_labels import MultiLabels, write_multi_labels
from loaders.packs.labels.tables import LabelTableWriter, label_table_path
from loaders.packs.listing import Plan, ShardPlan, listing_path, read_items
from loaders.packs.manifest import (
    FORMAT_VERSION,
    LABELS_FOLDER,
    QUARANTINE_NAME,
    SHARD_LIST_NAME,
    TRUE_LABELS,
    WARNINGS_NAME,
    FileInfo,
    Manifest,
    SplitInfo,
    SplitRange,
)
from loaders.packs.options import PackOptions
from loaders.packs.pack import Pack
from loaders.packs.shards.parts import PartInfo, part_path, read_part_entries, read_part_info, read_part_rows
from loaders.packs.sources.spec import SplitSource

_ROWS_AT_ONCE = 1 << 20


class EmptySplitError(UserError):
    """Raised for a split of which no input could be packed."""


def join_parts(
    target: Path, options: PackOptions, plan: Plan, recorded: dict[str, Any], base: Pack | None = None
) -> Manifest:
    """Write index, labels and lists shard by shard, and return the manifest.

    Args:
        options: what was packed; its build folder has a part file with the rows of each shard.
        recorded: options that the manifest records.
        base: pack to which the parts are appended; its rows come first.

    Raises:
        EmptySplitError: no input of a split could be packed.
    """
    build = options.build
    parts = [(shard, read_part_info(part_path(build, shard))) for shard in plan.shards]
    before = None if base is None else base.manifest
    first_row, first_shard = (0, 0) if before is None else (before.num_images, before.num_shards)
    infos = merge_splits(before, _split_infos(build, plan, options.splits, parts, (first_row, first_shard)))
    kept = [(shard, part) for shard, part in parts if part.num_images]
    split_index = {info.name: index for index, info in enumerate(infos)}
    num_images = first_row + sum(part.num_images for _, part in kept)
    num_key_bytes = 0 if base is None else len(base.columns.key_bytes)
    num_key_bytes += sum(part.num_key_bytes for _, part in kept)
    blocks = chain(_old_blocks(base), _blocks(build, kept, split_index, first_shard))
    files = write_columns(target, num_images, num_key_bytes, blocks)
    old = (lambda name: iter(())) if base is None else partial(_old_lines, base.path)
    files.append(_write_labels(target, build, kept, len(plan.classes), base))
    if recorded.get("multi_label"):
        old_labels = None if base is None else MultiLabels.read(base.path, len(base.classes))
        given = _labels_given(build, kept, first_row)
        files.append(write_multi_labels(target, given, plan.classes, old_labels))
    lists = {
        QUARANTINE_NAME: _entries(build, parts, "rejected"),
        WARNINGS_NAME: _entries(build, parts, "warned"),
        SHARD_LIST_NAME: _shard_lines(kept),
    }
    files += [_write_lines(target, name, old(name), lines) for name, lines in lists.items()]
    num_quarantined = 0 if before is None else before.num_quarantined
    num_quarantined += sum(part.num_quarantined for _, part in parts)
    notes = dict.fromkeys((*(() if before is None else before.notes), *plan.notes))
    return Manifest(
        format_version=FORMAT_VERSION,
        shard_format=options.shard_format,
        num_images=num_images,
        num_shards=first_shard + len(kept),
        num_inputs=num_images + num_quarantined,
        num_quarantined=num_quarantined,
        actions=_action_counts(before, kept),
        classes=plan.classes,
        splits=infos,
        options=recorded,
        files=tuple(files),
        notes=tuple(notes),
    )


def merge_splits(base: Manifest | None, added: tuple[SplitInfo, ...]) -> tuple[SplitInfo, ...]:
    """Return the splits of a pack after an append: the old ones, with any added ranges, then the new ones."""
    merged = {info.name: info for info in (() if base is None else base.splits)}
    for info in added:
        old = merged.get(info.name)
        merged[info.name] = (
            info
            if old is None
            else SplitInfo(
                info.name,
                f"{old.source} + {info.source}",
                old.ranges + info.ranges,
                old.num_images + info.num_images,
                old.num_labeled + info.num_labeled,
                old.num_quarantined + info.num_quarantined,
                old.num_skipped + info.num_skipped,
            )
        )
    return tuple(merged.values())


def _split_infos(
    build: Path,
    whole: Plan,
    splits: tuple[SplitSource, ...],
    parts: list[tuple[ShardPlan, PartInfo]],
    first: tuple[int, int],
) -> tuple[SplitInfo, ...]:
    infos = []
    row, shard = first
    for split in splits:
        mine = [(plan, part) for plan, part in parts if plan.split == split.split]
        ranges: list[SplitRange] = []
        labeled = 0
        for plan, part in mine:
            if not part.num_images:
                continue
            labeled += int((read_part_rows(part_path(build, plan))["label"] >= 0).sum())
            last = ranges[-1] if ranges else None
            if last and plan.number == last.first_number + shard - last.first_shard:
                ranges[-1] = SplitRange(
                    last.first_row, row + part.num_images, last.first_shard, shard + 1, last.first_number
                )
            else:
                ranges.append(SplitRange(row, row + part.num_images, shard, shard + 1, plan.number))
            row, shard = row + part.num_images, shard + 1
        rejected = sum(part.num_quarantined for _, part in mine)
        if not ranges:
            refused = read_part_entries(part_path(build, mine[0][0]), "rejected")[0]
            raise EmptySplitError(
                f"split {split.split!r}: none of the {rejected} files in {mine[0][0].source} can be packed, "
                f"the first ({refused['name']}) because: {refused['reason']}; give a folder or .tar of images"
            )
        num_images = sum(rows.stop_row - rows.first_row for rows in ranges)
        skipped = whole.skipped.get(split.split, 0)
        infos.append(
            SplitInfo(split.split, split.text, tuple(ranges), num_images, labeled, rejected, skipped)
        )
    return tuple(infos)


def _old_blocks(base: Pack | None) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the rows of the pack to append to, block by block; nothing if there is no such pack."""
    if base is None:
        return
    columns = base.columns
    for first in range(0, len(base), _ROWS_AT_ONCE):
        stop = min(first + _ROWS_AT_ONCE, len(base))
        block = {name: getattr(columns, name)[first:stop] for name in COLUMN_DTYPES}
        offsets = columns.key_offset[first : stop + 1]
        block["key_offset"] = offsets - offsets[0]
        block["key_bytes"] = columns.key_bytes[int(offsets[0]) : int(offsets[-1])]
        yield block


def _old_lines(folder: Path, name: str) -> Iterator[str]:
    if not (folder / name).exists():  # older packs have no file of warnings
        return
    with open(folder / name, encoding="utf-8") as file:
        yield from file


def _blocks(
    build: Path, kept: list[tuple[ShardPlan, PartInfo]], split_index: dict[str, int], first_shard: int
) -> Iterator[dict[str, NDArray[Any]]]:
    for shard, (plan, part) in enumerate(kept, first_shard):
        rows = read_part_rows(part_path(build, plan))
        rows["shard"] = np.full(part.num_images, shard, np.uint32)
        rows["split"] = np.full(part.num_images, split_index[plan.split], np.uint16)
        yield rows


def _write_labels(
    out: Path, build: Path, kept: list[tuple[ShardPlan, PartInfo]], num_classes: int, base: Pack | None
) -> FileInfo:
    table = label_table_path(TRUE_LABELS)
    (out / LABELS_FOLDER).mkdir(exist_ok=True)
    with atomic_file(out / table) as file, LabelTableWriter(file, num_classes) as writer:
        first_row = 0 if base is None else len(base)
        if base is not None and len(base.labels):
            old = base.labels
            writer.append(old.row, old.label, old.confidence, old.source, old.cycle)
        for plan, part in kept:
            label = read_part_rows(part_path(build, plan))["label"]
            row = np.flatnonzero(label >= 0)
            if len(row):
                ones, zeros = np.ones(len(row), np.float32), np.zeros(len(row), np.int32)
                source = np.full(len(row), TRUE_LABELS, object)
                writer.append(row + first_row, label[row], ones, source, zeros)
            first_row += part.num_images
    return FileInfo.of(out, table)


def _labels_given(
    build: Path, kept: list[tuple[ShardPlan, PartInfo]], first_row: int
) -> Iterator[tuple[int, str]]:
    """Yield the row and the label of every packed image that has a label in its source."""
    row = first_row
    for plan, part in kept:
        rejected = {entry["key"] for entry in read_part_entries(part_path(build, plan), "rejected")}
        for item in read_items(listing_path(build, plan.split), plan.first_byte, plan.num_bytes):
            if f"{plan.split}/{item.key}" in rejected:
                continue
            if item.label is not None:
                yield row, item.label
            row += 1
        first_row += part.num_images
        assert row == first_row, f"{plan.split}: the listing gives {row} rows, its shards {first_row}"


def _write_lines(out: Path, name: str, old: Iterator[str], lines: Iterator[dict[str, Any]]) -> FileInfo:
    new = (json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    with atomic_file(out / name) as file:
        # A name that is not valid UTF-8 holds lone surrogates; they become JSON escapes such as "\udcff".
        file.writelines(line.encode("utf-8", "backslashreplace") for line in chain(old, new))
    return FileInfo.of(out, name)


def _entries(
    build: Path, parts: list[tuple[ShardPlan, PartInfo]], kind: Literal["rejected", "warned"]
) -> Iterator[dict[str, Any]]:
    for plan, part in parts:
        if part.num_quarantined if kind == "rejected" else part.num_warned:
            yield from read_part_entries(part_path(build, plan), kind)


def _shard_lines(kept: list[tuple[ShardPlan, PartInfo]]) -> Iterator[dict[str, Any]]:
    for _, part in kept:
        files = [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in part.files]
        yield {"num_images": part.num_images, "files": files}


def _action_counts(before: Manifest | None, kept: list[tuple[ShardPlan, PartInfo]]) -> dict[str, int]:
    counts = Counter({} if before is None else before.actions)
    for _, part in kept:
        for value, count in part.actions.items():
            counts[action_name(int(value))] += count
    return dict(sorted(counts.items()))


def action_name(value: int) -> str:
    """Return the name of an action value, e.g. "reencoded+resized"; 0 is "copied"."""
    names = [str(flag.name).lower() for flag in Action if flag & value]
    return "+".join(names) or "copied"
