"""Verification: every byte of a pack against its manifest, and every row against its shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from loaders.common.errors import UserError
from loaders.common.files import sha256_of
from loaders.packs.labels.tables import LabelTable, label_table_path
from loaders.packs.manifest import (
    INDEX_FOLDER,
    SHARD_LIST_NAME,
    SHARDS_FOLDER,
    TRUE_LABELS,
    FileInfo,
    read_manifest,
)
from loaders.packs.pack import Pack, open_pack
from loaders.packs.shards.checksum import content_hash, crc32
from loaders.packs.shards.shard_list import ShardRecord, read_shard_records

_SHOWN_ROWS = 3
_ROWS_AT_ONCE = 1 << 20
Progress = Callable[[int, int], None]


def verify_pack(folder: Path, workers: int = 1, progress: Progress | None = None) -> list[str]:
    """Compare a pack with its manifest; if index, labels or lists differ, shards are not compared.

    Args:
        workers: number of threads that read and hash.
        progress: called with (shards done, total shards) after every shard.

    Returns:
        Lines that describe the differences; empty if the pack is intact.

    Raises:
        UserError: there is no pack, or its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    differences = [text for file in manifest.files for text in _check_file(folder, file.path, file)]
    if differences:
        return differences  # all further checks rely on these files
    try:
        pack = open_pack(folder)
        records = read_shard_records(folder)
        differences += _check_labels(pack)
    except UserError as error:
        return [str(error)]
    if len(records) != pack.num_shards:
        return [f"{SHARD_LIST_NAME} lists {len(records)} shards, the manifest says {pack.num_shards}"]
    differences += _unknown_files(folder, records, {file.path for file in manifest.files})
    bounds = _shard_rows(pack)
    if bounds is None:
        return [*differences, f"{INDEX_FOLDER}/shard.npy: rows are not in the order of their shards"]
    report = progress or (lambda done, total: None)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        tasks = pool.map(
            lambda n: _check_shard(pack, n, records[n], bounds[n], bounds[n + 1]), range(len(records))
        )
        for number, found in enumerate(tasks):
            differences += found
            report(number + 1, len(records))
    return differences


def _check_file(folder: Path, name: str, file: FileInfo) -> list[str]:
    path = folder / name
    if not path.is_file():
        return [f"{name}: missing"]
    size = path.stat().st_size
    if size != file.size_bytes:
        return [f"{name}: {size} bytes, expected {file.size_bytes}"]
    if sha256_of(path) != file.sha256:
        return [f"{name}: content differs from its checksum"]
    return []


def _check_labels(pack: Pack) -> Iterator[str]:
    path = label_table_path(TRUE_LABELS)
    table = LabelTable.read(pack.path / path, len(pack))
    if table.num_classes != len(pack.manifest.classes):
        yield f"{path}: {table.num_classes} classes, the manifest has {len(pack.manifest.classes)}"
    for info in pack.manifest.splits:
        labeled = int((pack.split(info.name).labels() >= 0).sum())
        if labeled != info.num_labeled:
            yield f"{path}: split {info.name} has {labeled} labels, the manifest says {info.num_labeled}"


def _unknown_files(folder: Path, records: list[ShardRecord], listed: set[str]) -> Iterator[str]:
    """Report files among shards and columns that no list names; further label tables are no fault."""
    known = listed | {f"{SHARDS_FOLDER}/{file.path}" for record in records for file in record.files}
    for inside in (SHARDS_FOLDER, INDEX_FOLDER):
        for path in sorted((folder / inside).glob("*")):  # yields nothing if the folder itself is missing
            name = f"{inside}/{path.name}"
            if name not in known:
                yield f"{name}: belongs to no shard or column of the manifest"


def _shard_rows(pack: Pack) -> Any:
    """Return int64 [num_shards + 1], each shard's first row, then the row count; None if `shard` is wrong."""
    shard = pack.columns.shard
    if len(shard) == 0 or int(shard[-1]) >= pack.num_shards:
        return None
    for first in range(0, len(shard), _ROWS_AT_ONCE):
        block = shard[first : first + _ROWS_AT_ONCE + 1]
        if (block[1:] < block[:-1]).any():
            return None
    return np.searchsorted(shard, np.arange(pack.num_shards + 1, dtype=shard.dtype))


def _check_shard(pack: Pack, shard: int, record: ShardRecord, first_row: int, stop_row: int) -> list[str]:
    """Check the files of one shard, and the content hash and CRC-32 of each of its rows."""
    found: list[str] = []
    for file in record.files:
        found += _check_file(pack.path, f"{SHARDS_FOLDER}/{file.path}", file)
    name = pack.shard_path(shard).name
    if record.num_images != stop_row - first_row or record.files[0].path != name:
        found.append(
            f"{SHARDS_FOLDER}/{name}: the index has {stop_row - first_row} rows for it, "
            f"{SHARD_LIST_NAME} says {record.num_images} in {record.files[0].path}"
        )
    if not pack.shard_path(shard).is_file():
        return found
    bad = _differing_rows(pack, shard, first_row, stop_row)
    if bad:
        keys = ", ".join(f"{row} ({pack.key(row)})" for row in bad[:_SHOWN_ROWS])
        found.append(
            f"{SHARDS_FOLDER}/{name}: {len(bad)} of {stop_row - first_row} images differ from their "
            f"content hash or CRC-32, rows {keys}{', ...' if len(bad) > _SHOWN_ROWS else ''}"
        )
    return found


def _differing_rows(pack: Pack, shard: int, first_row: int, stop_row: int) -> list[int]:
    """Return the rows whose bytes cannot be read, or differ in content hash or CRC-32."""
    columns, rows = pack.columns, slice(first_row, stop_row)
    try:
        data = pack.shard_map(shard)
    except UserError:
        return list(range(first_row, stop_row))
    first, size = columns.offset[rows].astype(np.int64), columns.size[rows].astype(np.int64)
    inside = (first >= 0) & (first + size <= len(data))
    first, size = np.where(inside, first, 0), np.where(inside, size, 0)
    images = [data[a : a + n].data for a, n in zip(first.tolist(), size.tolist(), strict=True)]
    checksums = np.array([crc32(image) for image in images], np.uint32)
    digests = np.frombuffer(b"".join(map(content_hash, images)), "<u8").reshape(-1, 2)
    same = inside & (checksums == columns.crc32[rows]) & (digests == columns.content_hash[rows]).all(axis=1)
    return [first_row + int(place) for place in np.flatnonzero(~same)]
