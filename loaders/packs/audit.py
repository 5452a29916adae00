"""Deeper checks of a pack: decode every image, and account for every input of its sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg
from loaders.packs.listing import key_hash, listed
from loaders.packs.pack import Pack, Split
from loaders.packs.quarantine import quarantined
from loaders.packs.shards.checksum import content_hash
from loaders.packs.sources.item import Source, SourceItem, UnreadableItem
from loaders.packs.sources.spec import SplitSource
from loaders.packs.sources.table_columns import column_options

_ROWS_PER_TASK = 256
_SHOWN = 3


def decode_all(pack: Pack, workers: int) -> list[str]:
    """Decode every image in `workers` threads, and return one line for each image that fails.

    An image fails if it cannot be decoded, or if its size differs from the one in the index.
    """
    firsts = range(0, len(pack), _ROWS_PER_TASK)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = pool.map(lambda first: list(_decode_some(pack, first)), firsts)
        return [line for lines in found for line in lines]


def _decode_some(pack: Pack, first: int) -> Iterator[str]:
    columns = pack.columns
    for row in range(first, min(first + _ROWS_PER_TASK, len(pack))):
        size = int(columns.height[row]), int(columns.width[row])
        encoding, problem = int(columns.encoding[row]), ""
        try:
            data = pack.view(row)
            if encoding == ENCODING_JPEG:
                found = decode_jpeg(data).shape[:2]
                problem = "" if found == size else f"decodes to {found}, the index says {size}"
            elif encoding != ENCODING_RAW:
                problem = f"encoding {encoding} is unknown"
            elif len(data) != size[0] * size[1] * 3:
                problem = f"has {len(data)} bytes, expected {size[0]} x {size[1]} x 3"
        except (ValueError, UserError) as error:
            problem = f"cannot be decoded: {error}"
        if problem:
            yield f"row {row} ({pack.key(row)}) {problem}"


def compare_with_source(pack: Pack, first: SplitSource, *appended: SplitSource) -> list[str]:
    """Check that the inputs of a split's sources are exactly those in the pack and its quarantine.

    Inputs are matched by their keys. If an image's bytes were copied, its content hash is compared too.

    Args:
        first: the split, and the source from which it was made.
        appended: the same split with each source that was appended to it, in the order of appending.

    Returns:
        Lines that describe the differences, empty if there are no differences; of many missing or additional
        inputs, only a few are named.

    Raises:
        UserError: the pack has no such split or is damaged, or a source cannot be listed.
        OSError: there is no room for the temporary list of inputs.
    """
    name, sources = first.split, " and ".join(split.source for split in (first, *appended))
    rows, hashes = _rows_by_key(pack.split(name))
    refused = _quarantined_keys(pack, name)
    seen = np.zeros(len(rows), np.bool_)
    differences: list[str] = []
    for split in (first, *appended):
        differences += _compare_keys(pack, split, rows, hashes, refused, seen)
    extra = rows[~seen]
    if len(extra) or refused.total():
        keys = [pack.key(int(row)) for row in extra[:_SHOWN]] + sorted(islice(refused.elements(), _SHOWN))
        differences.append(
            f"{len(extra) + refused.total()} inputs of split {name} are not in {sources}, e.g. "
            f"{', '.join(keys[:_SHOWN])}"
        )
    return differences


def _compare_keys(
    pack: Pack,
    split: SplitSource,
    rows: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    refused: Counter[str],
    seen: NDArray[np.bool_],
) -> list[str]:
    """Return lines that describe the differences of one source; `rows` and `hashes` as from `_rows_by_key`.

    A packed input is marked in `seen` [N]; for a quarantined one, the count in `refused` is reduced by one.
    """
    differences: list[str] = []
    missing = 0
    with listed(split, column_options(pack.manifest.options)) as (source, items):
        for item in items:
            key = f"{split.split}/{item.key}"
            if refused[key]:  # counted down, since a later source may have a packed image with this key
                refused[key] -= 1
                continue
            place = _find(hashes, key)
            if place is None:
                missing += 1
                if missing <= _SHOWN:
                    differences.append(f"{key} of {split.source} is neither packed nor quarantined")
                continue
            seen[place] = True
            differences += _compare_bytes(pack, int(rows[place]), source, item)
    if missing > _SHOWN:
        differences.append(f"... {missing} inputs of {split.source} in all are not in the pack")
    return differences


def _rows_by_key(part: Split) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the rows of a split and the hashes of their keys, sorted by hash."""
    rows = np.concatenate([np.arange(first, stop) for first, stop in part.row_ranges])
    joined = b"".join(key_hash(part.pack.key(row)) for row in rows.tolist())
    hashes = np.frombuffer(joined, np.uint64)
    order = np.argsort(hashes)
    return rows[order], hashes[order]


def _find(hashes: NDArray[np.uint64], key: str) -> int | None:
    value = np.frombuffer(key_hash(key), np.uint64)[0]
    place = int(np.searchsorted(hashes, value))
    return place if place < len(hashes) and hashes[place] == value else None


def _quarantined_keys(pack: Pack, split: str) -> Counter[str]:
    """Return how often each key of a split is in the quarantine; appended sources may repeat a key."""
    return Counter(entry["key"] for entry in quarantined(Path(pack.path)) if entry["split"] == split)


def _compare_bytes(pack: Pack, row: int, source: Source, item: SourceItem) -> list[str]:
    if pack.columns.action[row] != 0:
        return []
    try:
        same = content_hash(source.read(item)) == pack.columns.content_hash[row].tobytes()
    except (UnreadableItem, UserError) as error:
        return [f"{pack.key(row)} cannot be read from its source now: {error}"]
    return [] if same else [f"{pack.key(row)} differs from its source"]
