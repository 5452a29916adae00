"""Writing FFCV shards: .beton files whose bytes depend only on the images and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from loaders.common.files import sha256_of
from loaders.packs.image import PreparedImage
from loaders.packs.manifest import FileInfo
from loaders.packs.shards import beton_layout
from loaders.packs.shards.rows import Batch
from loaders.packs.shards.tar_shard import write_all


class PageTooSmallError(Exception):
    """An image is larger than a page; the shard needs pages of `page_bytes` or more."""

    def __init__(self, page_bytes: int) -> None:
        """Keep the page size that is needed."""
        super().__init__(f"needs pages of {page_bytes} bytes")
        self.page_bytes = page_bytes


def page_bytes_for(image_bytes: int) -> int:
    """Return the smallest page size that holds an image; FFCV requires a power of two, 2 MiB or more."""
    return max(beton_layout.MIN_PAGE_BYTES, 1 << (max(image_bytes, 1) - 1).bit_length())


class BetonShardWriter:
    """Writes one .beton shard with the fields `image` and `label` (-1 where there is none)."""

    def __init__(self, path: Path, max_samples: int, page_bytes: int = beton_layout.MIN_PAGE_BYTES) -> None:
        """Begin a shard.

        Args:
            path: file to write; the caller renames it when it is finished.
            max_samples: number of samples for which the metadata has room; fewer may be added.
            page_bytes: size of a page, a power of two; no image may be larger.
        """
        self._path = path
        self._file: BinaryIO = open(path, "wb", buffering=0)  # noqa: SIM115 - closed in finish() or abort()
        self._page_bytes = page_bytes
        self._samples = np.zeros(max_samples, beton_layout.SAMPLE)
        self._sizes = np.zeros(max_samples, np.uint64)
        self._num_samples = 0
        self._page_start = -(-(beton_layout.METADATA_START + self._samples.nbytes) // page_bytes) * page_bytes
        self._page = bytearray()

    def add(self, key: str, image: PreparedImage, label: int) -> int:
        """Append an image; return the offset of its encoded bytes in the shard. A beton does not store `key`.

        Raises:
            PageTooSmallError: the image needs larger pages.
        """
        del key
        size = len(image.data)
        if size > self._page_bytes:
            raise PageTooSmallError(page_bytes_for(size))
        if len(self._page) + size > self._page_bytes:
            self._flush_page()
        offset = self._page_start + len(self._page)
        self._page += image.data
        mode = beton_layout.MODE_RAW if image.is_raw else beton_layout.MODE_JPEG
        self._samples[self._num_samples] = ((mode, image.width, image.height, offset), label)
        self._sizes[self._num_samples] = size
        self._num_samples += 1
        return offset

    def add_batch(self, batch: Batch) -> NDArray[np.int64]:
        """Append many JPEG images; return int64 [K], the offset of each in the shard.

        Raises:
            PageTooSmallError: an image needs larger pages.
        """
        sizes = np.diff(batch.starts)
        if len(sizes) and int(sizes.max()) > self._page_bytes:
            raise PageTooSmallError(page_bytes_for(int(sizes.max())))
        offsets = np.zeros(len(sizes), np.int64)
        first = 0
        while first < len(sizes):
            room = self._page_bytes - len(self._page)
            stop = int(np.searchsorted(batch.starts, batch.starts[first] + room, "right")) - 1
            if stop == first:
                self._flush_page()
                continue
            here = self._page_start + len(self._page)
            offsets[first:stop] = batch.starts[first:stop] - batch.starts[first] + here
            self._page += batch.data[int(batch.starts[first]) : int(batch.starts[stop])].data
            first = stop
        self._add_samples(batch, offsets, sizes)
        return offsets

    def _add_samples(self, batch: Batch, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        rows = slice(self._num_samples, self._num_samples + len(sizes))
        image = self._samples["image"][rows]
        image["mode"] = beton_layout.MODE_JPEG
        image["height"], image["width"] = batch.facts[:, 0], batch.facts[:, 1]
        image["data_ptr"] = offsets
        self._samples["label"][rows] = batch.labels
        self._sizes[rows] = sizes
        self._num_samples += len(sizes)

    def _flush_page(self) -> None:
        self._file.seek(self._page_start)
        write_all(self._file, self._page)
        self._page_start += self._page_bytes
        self._page = bytearray()

    def finish(self) -> list[FileInfo]:
        """Write tables and header; return size and checksum of the shard, whose path the caller fills in."""
        if self._page:
            self._flush_page()
        samples = self._samples[: self._num_samples]
        allocations = np.zeros(self._num_samples, beton_layout.ALLOCATION)
        allocations["sample_id"] = np.arange(self._num_samples)
        allocations["ptr"] = samples["image"]["data_ptr"]
        allocations["size"] = self._sizes[: self._num_samples]
        header = np.zeros(1, beton_layout.HEADER)
        header["version"], header["num_fields"] = beton_layout.VERSION, 2
        header["page_size"], header["num_samples"] = self._page_bytes, self._num_samples
        header["alloc_table_ptr"] = self._page_start
        self._file.seek(self._page_start)  # skips the unused end of the last page, which becomes a hole
        write_all(self._file, allocations.tobytes())
        self._file.seek(0)
        write_all(self._file, header.tobytes() + beton_layout.field_descriptors() + samples.tobytes())
        os.fsync(self._file.fileno())
        self._file.close()
        return [FileInfo("", self._path.stat().st_size, sha256_of(self._path))]

    def abort(self) -> None:
        """Close the file; this does nothing after `finish`."""
        self._file.close()
