"""Dividing the inputs of one source among several splits, by their labels and the content of their files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import atomic_file
from loaders.packs.image import ImagePolicy, prepare_image
from loaders.packs.labels.division import SplitDivision, divide, joined_groups, scarce_note
from loaders.packs.listing_lines import from_line
from loaders.packs.reasons import BadImage
from loaders.packs.shards.checksum import content_hash
from loaders.packs.sources.item import MAX_FILE_BYTES, Source, SourceItem, UnreadableItem
from loaders.packs.sources.other_pack import PackSource

_Hashes = list[tuple[bytes | None, int]]
_ITEMS_PER_TASK = 64
_LOOKED_AT_PX = 64  # shorter side to which images are shrunk before they are compared


class _Seen(NamedTuple):
    """The facts about the N items of a listing by which they are divided.

    Attributes:
        label: int64 [N], index into `classes`; -1 for an item without a label.
        hashes: uint64 [N, 2], content hashes; 0 where none was computed.
        look: uint64 [N], perceptual hashes; 0 where none was computed.
        readable: bool [N], whether the item has a content hash.
        classes: class names in the order in which they first appear.
    """

    label: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    look: NDArray[np.uint64]
    readable: NDArray[np.bool_]
    classes: tuple[str, ...]


def divide_listing(
    listing: Path, parts: Sequence[Path], source: Source, division: SplitDivision, workers: int = 1
) -> tuple[list[int], list[str]]:
    """Divide a listing into one listing per part; each part keeps the order of the whole.

    Files are read once for their hashes, so that exact copies go to the same part. A file without a hash, for
    example an empty one, goes to the first part and will be quarantined. The result depends only on source
    and division.

    Args:
        listing: listing file of the whole source, in the format of `listing_lines`.
        parts: listing files to write, one for each split of the division.
        division: shares, seed, and whether images that look the same stay together.
        workers: number of threads that read.

    Returns:
        The number of items in each part, and notes for the summary.

    Raises:
        UserError: a part would get no image, or the source has changed.
    """
    seen = _look(listing, source, division.near, workers)
    part = np.zeros(len(seen.label), np.int64)
    known = np.flatnonzero(seen.readable)
    pairs, notes = np.zeros((0, 2), np.int64), list[str]()
    if division.near and len(known):
        from loaders.packs.findings import near_pairs  # loads the image decoders

        pairs = np.array(list(near_pairs(seen.look[known])), np.int64).reshape(-1, 2)
    groups = joined_groups(len(known), seen.hashes[known], pairs)
    part[known] = divide(seen.label[known], groups, seen.hashes[known, 0], division.shares, division.seed)
    counts = np.bincount(part[known], minlength=len(parts))
    if (counts == 0).any():
        raise UserError(
            f"split {division.names[int(counts.argmin())]!r}: expected at least one image of each part, "
            f"found {len(known)} images to divide among {len(parts)} splits; give more images, or fewer "
            "splits"
        )
    if len(pairs):
        sizes = np.bincount(groups)
        num_joined = int((sizes[groups] > 1).sum())
        notes.append(f"{num_joined:,} images have copies or near copies, kept together")
    scarce = scarce_note(seen.label[known], part[known], division.names, seen.classes)
    notes += [] if scarce is None else [scarce]
    _write(listing, parts, part)
    return np.bincount(part, minlength=len(parts)).tolist(), notes


def _look(listing: Path, source: Source, near: bool, workers: int) -> _Seen:
    """Read the files of a listing once, and return the facts about all of its items."""
    number_of: dict[str, int] = {}
    labels, digests, looks = list[int](), list[bytes | None](), list[int]()

    def work(items: list[SourceItem]) -> _Hashes:
        return [_hashes(source, item, near) for item in items]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for items, found in _in_order(pool, work, _tasks(listing), 2 * max(1, workers)):
            for item, (digest, look) in zip(items, found, strict=True):
                labels.append(-1 if item.label is None else number_of.setdefault(item.label, len(number_of)))
                digests.append(digest)
                looks.append(look)
    hashes = np.frombuffer(b"".join(digest or bytes(16) for digest in digests), "<u8").reshape(-1, 2)
    readable = np.array([digest is not None for digest in digests])
    return _Seen(np.array(labels, np.int64), hashes, np.array(looks, np.uint64), readable, tuple(number_of))


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[list[SourceItem]], _Hashes],
    tasks: Iterator[list[SourceItem]],
    ahead: int,
) -> Iterator[tuple[list[SourceItem], _Hashes]]:
    """Yield tasks with their results, in order; at most `ahead` are queued, since a listing may be long."""
    waiting = deque((task, pool.submit(work, task)) for task in islice(tasks, ahead))
    while waiting:
        task, future = waiting.popleft()
        waiting.extend((more, pool.submit(work, more)) for more in islice(tasks, 1))
        yield task, future.result()


def _tasks(listing: Path) -> Iterator[list[SourceItem]]:
    with open(listing, "rb") as file:
        while lines := list(islice(file, _ITEMS_PER_TASK)):
            yield [from_line(line) for line in lines]


def _hashes(source: Source, item: SourceItem, near: bool) -> tuple[bytes | None, int]:
    """Return a file's content hash and perceptual hash; the latter is 0 unless `near`.

    Return None and 0 for a file that is empty, too large, unreadable or already known to have a problem.
    """
    if item.problem or (item.size_bytes > MAX_FILE_BYTES and not isinstance(source, PackSource)):
        return None, 0
    try:
        data = source.read(item)
    except UnreadableItem:
        return None, 0
    if not data:
        return None, 0
    digest = content_hash(data)
    return digest, _look_of(data, digest) if near else 0


def _look_of(data: bytes, digest: bytes) -> int:
    from loaders.packs.findings import difference_hash  # loads the image decoders

    try:
        image = prepare_image(data, ImagePolicy(short_side=_LOOKED_AT_PX, encoding="raw"))
    except BadImage:  # the file will be quarantined; its content hash makes it resemble no other image
        return int.from_bytes(digest[:8], "little")
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    return difference_hash(np.ascontiguousarray(pixels[:, :, 1]))


def _write(listing: Path, parts: Sequence[Path], part: NDArray[np.int64]) -> None:
    with ExitStack() as stack, open(listing, "rb") as lines:
        files = [stack.enter_context(atomic_file(path)) for path in parts]
        for number, line in zip(part.tolist(), lines, strict=True):
            files[number].write(line)
