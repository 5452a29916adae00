"""Find leaks: images that a measured split shares with those trained on, by row or by content hash.

The search reads only columns of the index, no images. Copies are images with equal bytes in the shards; if
the same picture was encoded twice, the second is not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs.pack import Pack, Split

Rows = NDArray[np.int64]
_BLOCK = 1 << 20  # rows looked up at once; their hashes take 16 MB


@dataclass(frozen=True)
class Leak:
    """The rows and copies that a set of images shares with a split.

    Attributes:
        num_images: number of images looked up.
        num_rows: how many of the images are rows of the split.
        num_copies: how many of the others have the content of an image of the split.
        example: key of the first row of either kind.
    """

    split: str
    num_images: int
    num_rows: int
    num_copies: int
    example: str

    def __str__(self) -> str:
        """Say what is shared, as in "2 rows and 1 copy of a row of split 'test' among 40 images, ..."."""
        rows = "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        copies = "1 copy of a row" if self.num_copies == 1 else f"{self.num_copies:,} copies of rows"
        found = " and ".join([rows] * (self.num_rows > 0) + [copies] * (self.num_copies > 0))
        return f"{found} of split {self.split!r} among {self.num_images:,} images, such as {self.example!r}"


class _Contents:
    """The content hashes of a split, in which other hashes are looked up."""

    def __init__(self, split: Split) -> None:
        parts = [split.pack.columns.content_hash[first:stop] for first, stop in split.row_ranges]
        hashes = np.concatenate(parts)
        # Sorted by the first 64 bits of each hash. Two different images of a split with the same 64 bits are
        # too improbable to be handled.
        self._sorted = hashes[np.argsort(hashes[:, 0])]
        bits = max(16, (16 * len(hashes)).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        # A table of the lowest bits rules out most rows without a search among the hashes.
        self._seen = np.zeros(1 << bits, np.bool_)
        self._seen[hashes[:, 0] & self._mask] = True

    def hold(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return bool [K]: for each of the hashes, uint64 [K, 2], whether an image of the split has it."""
        found: NDArray[np.bool_] = self._seen[hashes[:, 0] & self._mask]
        maybe = np.flatnonzero(found)
        place = np.searchsorted(self._sorted[:, 0], hashes[maybe, 0])
        known = self._sorted[np.minimum(place, len(self._sorted) - 1)]
        found[maybe] = (known == hashes[maybe]).all(1)
        return found


def shared_rows(pack: Pack, rows: Rows, split: Split) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the rows of a pack whose images a split also holds; the split may be of another pack.

    Args:
        rows: int64 [K], rows of `pack`.

    Returns:
        bool [K], whether a row belongs to the split; bool [K], whether it does not, but has the content of an
        image of the split.
    """
    own = np.zeros(len(rows), np.bool_)
    if pack.manifest == split.pack.manifest:
        ranges = np.array(sorted(split.row_ranges), np.int64)
        place = np.searchsorted(ranges[:, 0], rows, "right") - 1
        own = (place >= 0) & (rows < ranges[place, 1])
    contents, copies = _Contents(split), np.zeros(len(rows), np.bool_)
    for first in range(0, len(rows), _BLOCK):
        block = slice(first, first + _BLOCK)
        copies[block] = contents.hold(pack.columns.content_hash[rows[block]])
    return own, copies & ~own


def find_leak(pack: Pack, rows: Rows, split: Split) -> Leak | None:
    """Return what rows of a pack, int64 [K], share with a split; None if they share nothing."""
    own, copies = shared_rows(pack, rows, split)
    either = own | copies
    if not either.any():
        return None
    example = pack.key(int(rows[either.argmax()]))
    return Leak(split.name, len(rows), int(own.sum()), int(copies.sum()), example)


def check_leak(pack: Pack, rows: Rows, measured: Split, allow: bool, what: str = "labels") -> tuple[str, ...]:
    """Refuse rows whose images a split that is measured on also holds, or describe them if that is allowed.

    Args:
        rows: int64 [K], images to train or validate on.
        allow: return a description of the shared images instead of refusing.
        what: first words of the message.

    Returns:
        One line that describes the shared images; empty if there are none.

    Raises:
        UserError: images are shared, and that is not allowed.
    """
    leak = find_leak(pack, rows, measured)
    if leak is None:
        return ()
    if not allow:
        raise UserError(
            f"{what}: expected no image of split {measured.name!r}, which is measured on, found {leak}; "
            "leave them out (tools/labels.py exclude), measure on another split, or give --allow-leak"
        )
    return (f"{what}: {leak}",)
