"""Writing one shard: a pure function of the plan and the source, which any worker can run."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.errors import UserError
from loaders.packs.atomic import partial_path, publish
from loaders.packs.beton_shard import BetonShardWriter, PageTooSmallError, page_bytes_for
from loaders.packs.checksum import content_hash
from loaders.packs.columns import ENCODING_JPEG, ENCODING_RAW
from loaders.packs.image import ImagePolicy, PreparedImage, prepare_image
from loaders.packs.listing import MAX_FILE_BYTES, ShardPlan, listing_path, read_items, spool_path
from loaders.packs.manifest import BUILD_FOLDER, SHARDS_FOLDER, FileInfo, shard_file_name
from loaders.packs.odd_formats import BadImage
from loaders.packs.parts import PartInfo, part_path, write_part
from loaders.packs.sources.item import ImageSource, SourceItem, UnreadableItem, printable
from loaders.packs.sources.pack import PackSource
from loaders.packs.sources.spec import open_source
from loaders.packs.tar_shard import TarShardWriter

_ITEMS_PER_TASK = 16


@dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to write a shard.

    Attributes:
        out: folder of the pack.
        plan: the shard.
        classes: class names of the pack.
        shard_format: "webdataset" or "ffcv".
        policy: what is done to images.
        num_threads: threads that read and decode; they change nothing but the time.
    """

    out: Path
    plan: ShardPlan
    classes: tuple[str, ...]
    shard_format: str
    policy: ImagePolicy
    num_threads: int = 1


class _Outcome(NamedTuple):
    item: SourceItem
    image: PreparedImage | None
    digest: bytes
    reason: str


class _Rows:
    """The rows of a shard while it is written."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.digests: list[bytes] = []
        self.numbers: list[tuple[int, int, int, int, int, int, int]] = []
        self.rejected: list[dict[str, str]] = []

    def arrays(self) -> dict[str, NDArray[Any]]:
        numbers = np.array(self.numbers, np.int64).reshape(-1, 7)
        lengths = np.array([len(key) for key in self.keys], np.uint64)
        return {
            "offset": numbers[:, 0].astype(np.uint64),
            "size": numbers[:, 1].astype(np.uint32),
            "height": numbers[:, 2].astype(np.uint32),
            "width": numbers[:, 3].astype(np.uint32),
            "action": numbers[:, 4].astype(np.uint8),
            "label": numbers[:, 5],
            "encoding": numbers[:, 6].astype(np.uint8),
            "content_hash": np.frombuffer(b"".join(self.digests), "<u8").reshape(-1, 2),
            "key_offset": np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)]),
            "key_bytes": np.frombuffer(b"".join(self.keys), np.uint8),
        }


def write_shard(job: ShardJob) -> PartInfo:
    """Write one shard and its part.

    Raises:
        UserError: the source vanished or changed, or the disk is full; what is finished stays finished.
    """
    try:
        page_bytes = page_bytes_for(
            job.plan.max_item_bytes if job.plan.max_item_bytes <= MAX_FILE_BYTES else 1
        )
        while True:
            try:
                return _write_shard(job, page_bytes)
            except PageTooSmallError as error:  # an image grew when it was encoded anew
                page_bytes = error.page_bytes
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise UserError(
            f"cannot write {job.out} ({error.strerror}): make room and start the same command again, "
            f"it resumes"
        ) from None


def _write_shard(job: ShardJob, page_bytes: int) -> PartInfo:
    name = shard_file_name(job.plan.split, job.plan.number, job.shard_format)
    final = job.out / SHARDS_FOLDER / name
    partial = partial_path(final)
    writer: TarShardWriter | BetonShardWriter
    if job.shard_format == "webdataset":
        writer = TarShardWriter(partial, final.with_suffix(".idx"))
    else:
        writer = BetonShardWriter(partial, job.plan.num_items, page_bytes)
    try:
        rows = _fill(job, writer)
        files = [
            file if file.path else FileInfo(name, file.size_bytes, file.sha256) for file in writer.finish()
        ]
        if rows.keys:
            publish(partial, final)
    finally:
        writer.abort()
        partial.unlink(missing_ok=True)
    if not rows.keys:
        final.with_suffix(".idx").unlink(missing_ok=True)
        files = []
    actions = Counter(str(numbers[4]) for numbers in rows.numbers)
    num_key_bytes = sum(len(key) for key in rows.keys)
    info = PartInfo(
        tuple(files), len(rows.keys), num_key_bytes, len(rows.rejected), dict(sorted(actions.items()))
    )
    write_part(part_path(job.out / BUILD_FOLDER, job.plan), info, rows.arrays(), rows.rejected)
    return info


def _fill(job: ShardJob, writer: TarShardWriter | BetonShardWriter) -> _Rows:
    label_of = {name: label for label, name in enumerate(job.classes)}
    split, rows = job.plan.split, _Rows()
    for item, image, digest, reason in _outcomes(job):
        key = f"{split}/{item.key}"
        if image is None:
            name = printable(item.name)
            entry = {"split": split, "key": key, "source": job.plan.source, "name": name, "reason": reason}
            rows.rejected.append(entry)
            continue
        label = -1 if item.label is None else label_of.get(item.label, -1)
        offset = writer.add(key, image, label)
        rows.keys.append(key.encode("utf-8"))
        rows.digests.append(digest)
        encoding = ENCODING_RAW if image.is_raw else ENCODING_JPEG
        size = image.height, image.width
        rows.numbers.append((offset, len(image.data), *size, int(image.action), label, encoding))
    return rows


def _outcomes(job: ShardJob) -> Iterator[_Outcome]:
    """Yield what became of every item, in the order of the listing."""
    plan = job.plan
    path = listing_path(job.out / BUILD_FOLDER, plan.split)
    items = list(read_items(path, plan.first_byte, plan.num_bytes))
    source = open_source(plan.source, spool_path(job.out / BUILD_FOLDER))
    try:
        if job.num_threads == 1:
            for item in items:
                yield _prepare(source, item, job.policy)
            return
        tasks = [items[first : first + _ITEMS_PER_TASK] for first in range(0, len(items), _ITEMS_PER_TASK)]
        with ThreadPoolExecutor(job.num_threads) as pool:
            # At most one shard's images wait here, so memory is bounded by the shard size.
            for outcomes in pool.map(
                lambda task: [_prepare(source, item, job.policy) for item in task], tasks
            ):
                yield from outcomes
    finally:
        source.close()


def _prepare(source: ImageSource, item: SourceItem, policy: ImagePolicy) -> _Outcome:
    if item.problem:
        return _Outcome(item, None, b"", item.problem)
    if item.size_bytes > MAX_FILE_BYTES:
        return _Outcome(item, None, b"", f"{item.size_bytes} bytes, over the limit of {MAX_FILE_BYTES}")
    try:
        # Another pack has seen to its images already: they change format without being decoded.
        image = source.prepared(item, policy) if isinstance(source, PackSource) else None
        image = prepare_image(source.read(item), policy) if image is None else image
    except (BadImage, UnreadableItem) as error:
        return _Outcome(item, None, b"", str(error))
    return _Outcome(item, image, content_hash(image.data), "")
