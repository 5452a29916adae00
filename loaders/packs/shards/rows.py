"""The rows of one shard, collected while the shard is written; they become its part of the index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.kernels.encodings import ENCODING_JPEG, ENCODING_RAW
from loaders.packs.image import PreparedImage
from loaders.packs.reasons import Reason


class Refusal(NamedTuple):
    """Why an input is not packed: the reason, and a text for people."""

    reason: Reason
    text: str


@dataclass
class Batch:
    """K images that are added to a shard together, as arrays.

    Attributes:
        data: uint8 [total], the encoded images one after the other.
        starts: int64 [K + 1], where each image begins in `data`, and the end.
        keys: uint8 [total], the keys in UTF-8 one after the other.
        key_starts: int64 [K + 1], where each key begins in `keys`, and the end.
        labels: int64 [K], -1 for none.
        facts: int64 [K, 4], height, width, action and encoding.
        digests: uint64 [K, 2], content hashes.
        crc32: uint32 [K], checksums of the encoded images.
        rejected: quarantine entries of the inputs that were refused.
        warned: entries of the images about which decoders warned.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    keys: NDArray[np.uint8]
    key_starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    facts: NDArray[np.int64]
    digests: NDArray[np.uint64]
    crc32: NDArray[np.uint32]
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warned: list[dict[str, Any]] = field(default_factory=list)


class ShardRows:
    """Collects all rows of a shard, either one by one or batch by batch, and returns them as columns."""

    def __init__(self) -> None:
        """Start with no rows."""
        self.rejected: list[dict[str, Any]] = []
        self.warned: list[dict[str, Any]] = []
        self._keys: list[bytes] = []
        self._digests: list[bytes] = []
        self._numbers: list[tuple[int, ...]] = []
        self._key_sizes: list[NDArray[np.int64]] = []
        self._columns: list[NDArray[np.int64]] = []

    def add(
        self, key: bytes, digest: bytes, crc32: int, image: PreparedImage, label: int, offset: int
    ) -> None:
        """Add one image that begins at `offset` in its shard."""
        encoding = ENCODING_RAW if image.is_raw else ENCODING_JPEG
        self._keys.append(key)
        self._digests.append(digest)
        self._numbers.append(
            (offset, len(image.data), image.height, image.width, int(image.action), encoding, label, crc32)
        )

    def add_batch(self, batch: Batch, offsets: NDArray[np.int64]) -> None:
        """Add images that begin at `offsets`, int64 [K], in their shard."""
        self.rejected += batch.rejected
        self.warned += batch.warned
        self._keys.append(batch.keys.tobytes())
        self._digests.append(batch.digests.astype("<u8").tobytes())
        self._key_sizes.append(np.diff(batch.key_starts))
        self._columns.append(
            np.column_stack(
                [offsets, np.diff(batch.starts), batch.facts, batch.labels, batch.crc32.astype(np.int64)]
            ).astype(np.int64)
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return `label`, int64 [K], and one array per index column except `shard` and `split`."""
        alone = np.array(self._numbers, np.int64).reshape(-1, 8)
        numbers = np.concatenate([*self._columns, alone])
        alone_sizes = [len(key) for key in self._keys] if len(alone) else []
        sizes = np.concatenate([*self._key_sizes, np.array(alone_sizes, np.int64)])
        return {
            "offset": numbers[:, 0].astype(np.uint64),
            "size": numbers[:, 1].astype(np.uint32),
            "height": numbers[:, 2].astype(np.uint32),
            "width": numbers[:, 3].astype(np.uint32),
            "action": numbers[:, 4].astype(np.uint8),
            "encoding": numbers[:, 5].astype(np.uint8),
            "label": numbers[:, 6],
            "crc32": numbers[:, 7].astype(np.uint32),
            "content_hash": np.frombuffer(b"".join(self._digests), "<u8").reshape(-1, 2),
            "key_offset": np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64),
            "key_bytes": np.frombuffer(b"".join(self._keys), np.uint8),
        }
