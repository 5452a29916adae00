"""Copying images in batches: compiled code reads, checks and writes many at once.

An image that could not be read in bulk, that the policy changes, or that the compiled check does not prove to
be sound, is prepared singly. The pack is the same, byte for byte, as if all were prepared singly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.cache import first_use
from loaders.kernels.encodings import ENCODING_JPEG
from loaders.kernels.jpeg.markers import CLEAN, HAS_EXIF, HEIGHT, WIDTH
from loaders.kernels.jpeg.scan import ScanTables, scan_jpegs
from loaders.kernels.packing.read import read_files
from loaders.kernels.packing.tar import add_members
from loaders.packs.image import ImagePolicy
from loaders.packs.images.jpeg_header import JpegError, parse_jpeg_header
from loaders.packs.shards.checksum import content_hash, crc32
from loaders.packs.shards.job import ShardJob, prepare_alone, refusal_entry, warning_entry
from loaders.packs.shards.rows import Batch, Refusal
from loaders.packs.sources.item import Source, SourceItem, likely_size

_BATCH_IMAGES = 512
_BATCH_BYTES = 4 << 20
_local = threading.local()


def batches_of(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    """Yield items in batches; a batch ends at `_BATCH_IMAGES` items, or once it has `_BATCH_BYTES` bytes."""
    batch: list[SourceItem] = []
    size = 0
    for item in items:
        batch.append(item)
        size += likely_size(item.size_bytes)
        if len(batch) == _BATCH_IMAGES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def prepare_batch(
    job: ShardJob, source: Source, items: Sequence[SourceItem], label_of: Mapping[str | None, int]
) -> Batch:
    """Prepare items for a shard, in order; images keep their bytes wherever the policy allows.

    Args:
        job: shard to write; its image policy must be one that copies.
        label_of: number of each class, by its name.
    """
    data, starts, good = source.read_many(items)
    heads = scan_jpegs(data, starts, _tables())
    copied = good & _may_be_copied(data, starts, heads, job.policy)
    facts = np.zeros((len(items), 4), np.int64)
    facts[:, 0], facts[:, 1], facts[:, 3] = heads[:, HEIGHT], heads[:, WIDTH], ENCODING_JPEG
    kept, rejected, warned = copied.copy(), [], []
    images: dict[int, bytes] = {}
    for i in np.flatnonzero(~copied).tolist():
        image = prepare_alone(source, items[i], job.policy)
        if isinstance(image, Refusal):
            rejected.append(refusal_entry(job, items[i], image))
            continue
        if image.messages:
            warned.append(warning_entry(job, items[i], image.messages))
        kept[i], images[i] = True, image.data
        facts[i, :3] = image.height, image.width, int(image.action)
    if not copied.all():
        items = list(compress(items, kept.tolist()))
        data, starts = _joined(data, starts, kept, images)
    keys = [f"{job.plan.split}/{item.key}".encode() for item in items]
    ends, memory = starts.tolist(), data.data
    encoded = [memory[first:stop] for first, stop in pairwise(ends)]
    return Batch(
        data=data,
        starts=starts,
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_starts=_ends([len(key) for key in keys]),
        labels=np.array([label_of.get(item.label, -1) for item in items], np.int64),
        facts=facts[kept],
        digests=np.frombuffer(b"".join(map(content_hash, encoded)), "<u8").reshape(-1, 2),
        crc32=np.array(list(map(crc32, encoded)), np.uint32),
        rejected=rejected,
        warned=warned,
    )


def _tables() -> ScanTables:
    """Return this thread's cache of Huffman tables."""
    if not hasattr(_local, "tables"):
        _local.tables = ScanTables()
        load_kernels()
    tables: ScanTables = _local.tables
    return tables


@cache
def load_kernels() -> None:
    """Load or compile the kernels that copy images; only the first call in a process does any work."""
    nothing, ends = np.zeros(0, np.int64), np.zeros(1, np.int64)
    with first_use("copying JPEGs"):
        data, starts, _ = read_files(b"\0", nothing, nothing)
        scan_jpegs(data, starts, ScanTables())
        add_members(data.copy(), data, ends, data, ends, nothing, np.zeros((2, 512), np.uint8))


def _may_be_copied(
    data: NDArray[np.uint8], starts: NDArray[np.int64], heads: NDArray[np.int64], policy: ImagePolicy
) -> NDArray[np.bool_]:
    """Return bool [N], True for upright JPEGs, clean as in `scan_jpegs`, that the policy leaves unchanged."""
    height, width = heads[:, HEIGHT], heads[:, WIDTH]
    copied: NDArray[np.bool_] = (heads[:, CLEAN] != 0) & (height * width <= policy.max_pixels)
    for i in np.flatnonzero(copied & (heads[:, HAS_EXIF] != 0)).tolist():
        copied[i] = _is_upright(data[starts[i] : starts[i + 1]].tobytes())
    if not policy.keeps_sizes:
        for i in np.flatnonzero(copied).tolist():
            size = int(height[i]), int(width[i])
            copied[i] = policy.geometry(*size) == (*size, *size)
    return copied


def _is_upright(data: bytes) -> bool:
    """Tell whether a JPEG with EXIF, XMP or ICC data is plain and upright; False if its header is damaged."""
    try:
        header = parse_jpeg_header(data)
    except JpegError:
        return False
    return header.is_plain and header.orientation == 1


def _joined(
    data: NDArray[np.uint8], starts: NDArray[np.int64], kept: NDArray[np.bool_], images: dict[int, bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join the kept images: from `images` those that were prepared singly, the others from `data`."""
    pieces = [
        np.frombuffer(images[i], np.uint8) if i in images else data[starts[i] : starts[i + 1]]
        for i in np.flatnonzero(kept).tolist()
    ]
    joined = np.concatenate([np.zeros(0, np.uint8), *pieces])
    return joined, _ends([len(piece) for piece in pieces])


def _ends(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return int64 [K + 1]: 0, then the end of each of the K parts."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends
