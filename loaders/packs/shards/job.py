"""Writing one shard: its bytes depend only on the plan and the source, so any worker can write it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from loaders.common.errors import UserError
from loaders.common.files import partial_path, publish
from loaders.packs.image import ImagePolicy, PreparedImage, prepare_image
from loaders.packs.listing import ShardPlan, listing_path, read_items, spool_path
from loaders.packs.manifest import SHARDS_FOLDER, FileInfo, shard_file_name
from loaders.packs.options import PackOptions
from loaders.packs.reasons import BadImage, Reason
from loaders.packs.shards.beton_shard import BetonShardWriter, PageTooSmallError, page_bytes_for
from loaders.packs.shards.checksum import content_hash, crc32
from loaders.packs.shards.parts import PartInfo, part_path, write_part
from loaders.packs.shards.rows import Refusal, ShardRows
from loaders.packs.shards.tar_shard import TarShardWriter
from loaders.packs.sources.item import (
    MAX_FILE_BYTES,
    Source,
    SourceItem,
    printable,
)
from loaders.packs.sources.other_pack import PackSource
from loaders.packs.sources.spec import open_source
from loaders.packs.stores.upload import upload_file

_ITEMS_PER_TASK = 16
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class ShardJob:
    """Everything that a worker needs to write a shard.

    Attributes:
        options: what is packed and how; with `upload`, a shard's local copy is removed after its upload.
        num_threads: number of threads that read and decode; it changes only the time.
        in_bulk: whether compiled code copies images batch by batch; it changes only the time.
    """

    options: PackOptions
    plan: ShardPlan
    classes: tuple[str, ...]
    num_threads: int
    in_bulk: bool

    @cached_property
    def policy(self) -> ImagePolicy:
        """The image policy of the shard's split."""
        splits, policy = self.options.splits, self.options.policy
        return next(split.policy(policy) for split in splits if split.split == self.plan.split)


class _Outcome(NamedTuple):
    item: SourceItem
    image: PreparedImage | Refusal
    digest: bytes
    checksum: int


def write_shard(job: ShardJob) -> PartInfo:
    """Write one shard and its part file; return the summary in the part.

    Raises:
        UserError: the source vanished or changed, or the shard cannot be written; finished shards are kept.
    """
    try:
        page_bytes = page_bytes_for(
            job.plan.max_item_bytes if job.plan.max_item_bytes <= MAX_FILE_BYTES else 1
        )
        while True:
            try:
                return _write_shard(job, page_bytes)
            except PageTooSmallError as error:  # an image is larger than planned, e.g. re-encoded
                page_bytes = error.page_bytes
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise UserError(
            f"cannot write {job.options.out} ({error.strerror}): make room and start the same command again, "
            f"it resumes"
        ) from None


def _write_shard(job: ShardJob, page_bytes: int) -> PartInfo:
    options = job.options
    name = shard_file_name(job.plan.split, job.plan.number, options.shard_format)
    final = options.out / SHARDS_FOLDER / name
    partial = partial_path(final)
    writer: TarShardWriter | BetonShardWriter
    if options.shard_format == "webdataset":
        writer = TarShardWriter(partial, final.with_suffix(".idx"))
    else:
        writer = BetonShardWriter(partial, job.plan.num_items, page_bytes)
    try:
        rows = _fill_in_bulk(job, writer) if job.in_bulk else _fill(job, writer)
        columns = rows.arrays()
        num_images = len(columns["label"])
        files = [
            file if file.path else FileInfo(name, file.size_bytes, file.sha256) for file in writer.finish()
        ]
        if num_images:
            publish(partial, final)
            if options.upload is not None:
                _send(final.parent, files, options.upload)
    finally:
        writer.abort()
        partial.unlink(missing_ok=True)
    if not num_images:
        final.with_suffix(".idx").unlink(missing_ok=True)
        files = []
    values, counts = np.unique(columns["action"], return_counts=True)
    actions = {str(value): count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
    num_rejected = len(rows.rejected)
    info = PartInfo(
        tuple(files), num_images, len(columns["key_bytes"]), num_rejected, actions, len(rows.warned)
    )
    write_part(part_path(options.build, job.plan), info, columns, rows.rejected, rows.warned)
    return info


def _send(folder: Path, files: list[FileInfo], url: str) -> None:
    for file in files:
        upload_file(folder / file.path, f"{url}/{SHARDS_FOLDER}/{file.path}")
        (folder / file.path).unlink()


def _fill(job: ShardJob, writer: TarShardWriter | BetonShardWriter) -> ShardRows:
    """Write the images of a shard one by one."""
    label_of = _labels(job)
    rows = ShardRows()
    for item, image, digest, checksum in _outcomes(job):
        if isinstance(image, Refusal):
            rows.rejected.append(refusal_entry(job, item, image))
            continue
        if image.messages:
            rows.warned.append(warning_entry(job, item, image.messages))
        key = f"{job.plan.split}/{item.key}"
        label = label_of.get(item.label, -1)
        offset = writer.add(key, image, label)
        rows.add(key.encode("utf-8"), digest, checksum, image, label, offset)
    return rows


def _labels(job: ShardJob) -> dict[str | None, int]:
    return {name: label for label, name in enumerate(job.classes)}


def _entry(job: ShardJob, item: SourceItem) -> dict[str, Any]:
    """Return the fields that identify an input in the lists of a pack."""
    key, name = f"{job.plan.split}/{item.key}", printable(item.name)
    return {"split": job.plan.split, "key": key, "source": job.plan.source, "name": name}


def refusal_entry(job: ShardJob, item: SourceItem, refusal: Refusal) -> dict[str, Any]:
    """Return the quarantine entry of an input."""
    return {**_entry(job, item), "reason": refusal.text, "code": refusal.reason.value}


def warning_entry(job: ShardJob, item: SourceItem, messages: tuple[str, ...]) -> dict[str, Any]:
    """Return the entry of a packed image about which decoders warned."""
    return {**_entry(job, item), "messages": [printable(text) for text in messages]}


def _fill_in_bulk(job: ShardJob, writer: TarShardWriter | BetonShardWriter) -> ShardRows:
    """Write the images of a shard batch by batch; the result equals that of `_fill`, byte for byte."""
    from loaders.packs.bulk import batches_of, prepare_batch  # loads compiled code

    label_of, rows = _labels(job), ShardRows()
    with _opened(job) as (source, items):
        prepare = partial(prepare_batch, job, source, label_of=label_of)
        for batch in _mapped(prepare, batches_of(items), job.num_threads):
            rows.add_batch(batch, writer.add_batch(batch))
    return rows


@contextmanager
def _opened(job: ShardJob) -> Iterator[tuple[Source, Iterator[SourceItem]]]:
    """Open the source of a shard; yield it and the shard's items."""
    plan, build = job.plan, job.options.build
    source = open_source(plan.source, spool_path(build), job.options.columns)
    try:
        yield source, read_items(listing_path(build, plan.split), plan.first_byte, plan.num_bytes)
    finally:
        source.close()


def _mapped(work: Callable[[_In], _Out], tasks: Iterable[_In], num_threads: int) -> Iterator[_Out]:
    """Yield the results of all tasks in order, computed by `num_threads` threads."""
    if num_threads == 1:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        # At most one shard's images wait here, so memory is bounded by the shard size.
        yield from pool.map(work, tasks)


def _outcomes(job: ShardJob) -> Iterator[_Outcome]:
    """Yield the result for every item, in the order of the listing."""
    with _opened(job) as (source, items):
        tasks = iter(lambda: list(islice(items, _ITEMS_PER_TASK)), [])
        for outcomes in _mapped(
            lambda task: [_prepare(source, item, job.policy) for item in task], tasks, job.num_threads
        ):
            yield from outcomes


def _prepare(source: Source, item: SourceItem, policy: ImagePolicy) -> _Outcome:
    image = prepare_alone(source, item, policy)
    if isinstance(image, Refusal):
        return _Outcome(item, image, b"", 0)
    return _Outcome(item, image, content_hash(image.data), crc32(image.data))


def prepare_alone(source: Source, item: SourceItem, policy: ImagePolicy) -> PreparedImage | Refusal:
    """Prepare a single item; return the image as it is packed, or the reason why it is refused."""
    if item.problem:
        return Refusal(item.reason, item.problem)
    if item.size_bytes > MAX_FILE_BYTES and not isinstance(source, PackSource):
        return Refusal(Reason.TOO_LARGE, f"{item.size_bytes} bytes, over the limit of {MAX_FILE_BYTES}")
    try:
        # Images of another pack are prepared already. Unless the policy changes them, they are not decoded.
        image = source.prepared(item, policy) if isinstance(source, PackSource) else None
        return prepare_image(source.read(item), policy) if image is None else image
    except BadImage as error:
        return Refusal(error.reason, str(error))
