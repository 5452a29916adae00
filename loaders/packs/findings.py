"""Finding images that a pack holds more than once: exact copies, near copies, and images in two splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import GRAY, decode_jpeg, factor_leaving
from loaders.packs.pack import Pack
from loaders.packs.repeats import repeated_rows

NEAR_BITS = 3  # images count as alike if at most this many of the 64 bits of their hashes differ
_SHOWN = 12
# If hashes are cut into this many bands, two that differ in at most NEAR_BITS bits have an equal band.
_BANDS = NEAR_BITS + 1
_ROWS_PER_TASK = 256
_PAIR_BLOCK = 1024


@dataclass(frozen=True)
class Findings:
    """Copies in a pack.

    Attributes:
        num_copies: number of images that repeat an earlier image of the same split.
        copies: up to 12 examples, each up to 12 keys of images of equal content, two or more in one split.
        num_leaks: number of contents that two or more splits share.
        leaks: number of shared contents for each pair of splits.
        leaked: examples like `copies`, but of contents that two or more splits share.
        num_near: number of pairs from `near_pairs` whose images differ in their bytes; None if near copies
            were not searched for.
        near, near_rows: keys and rows of the first 12 of these pairs.
    """

    num_copies: int
    copies: tuple[tuple[str, ...], ...]
    num_leaks: int
    leaks: dict[tuple[str, str], int]
    leaked: tuple[tuple[str, ...], ...]
    num_near: int | None = None
    near: tuple[tuple[str, ...], ...] = ()
    near_rows: tuple[tuple[int, int], ...] = ()


def find_copies(pack: Pack, near: bool = False, workers: int = 1) -> Findings:
    """Find images that a pack holds more than once, by the content hashes of its index.

    Args:
        near: also decode every image and compare perceptual hashes.
        workers: number of threads that decode.
    """
    num_copies = num_leaks = 0
    copies: list[tuple[str, ...]] = []
    leaked: list[tuple[str, ...]] = []
    leaks: Counter[tuple[str, str]] = Counter()
    for rows in repeated_rows(pack.columns.content_hash):
        splits = pack.columns.split[rows]
        present, counts = np.unique(splits, return_counts=True)
        num_copies += int((counts - 1).sum())
        keys = tuple(pack.key(int(row)) for row in rows[:_SHOWN])
        if (counts > 1).any() and len(copies) < _SHOWN:
            copies.append(keys)
        if len(present) > 1:
            num_leaks += 1
            names = [pack.splits[index] for index in present]
            leaks.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
            if len(leaked) < _SHOWN:
                leaked.append(keys)
    pairs = _look_the_same(pack, workers) if near else None
    return Findings(
        num_copies,
        tuple(copies),
        num_leaks,
        dict(leaks),
        tuple(leaked),
        None if pairs is None else len(pairs),
        tuple((pack.key(a), pack.key(b)) for a, b in (pairs or [])[:_SHOWN]),
        tuple((a, b) for a, b in (pairs or [])[:_SHOWN]),
    )


def _look_the_same(pack: Pack, workers: int) -> list[tuple[int, int]]:
    """Return the rows of pairs of images that look the same but differ in their bytes."""
    content = pack.columns.content_hash
    pairs = near_pairs(perceptual_hashes(pack, workers))
    return [(a, b) for a, b in pairs if (content[a] != content[b]).any()]


def perceptual_hashes(pack: Pack, workers: int, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
    """Return uint64 [K], the difference hash of each image.

    The 64 bits of a hash stand for a grid of 8 x 8 places in the gray image, or in the green channel of an
    image stored as pixels. A bit is set if the image darkens to the right there.

    Args:
        workers: number of threads that decode.
        rows: int64 [K]; all rows by default.

    Source: Krawetz, "Kind of like that" (2013), difference hash.
    """
    chosen = np.arange(len(pack)) if rows is None else rows
    hashes = np.zeros(len(chosen), np.uint64)

    def work(first: int) -> None:
        for place, row in enumerate(chosen[first : first + _ROWS_PER_TASK].tolist(), first):
            try:
                hashes[place] = difference_hash(_gray(pack, row))
            except ValueError:  # damaged after packing; its content hash makes it resemble no other image
                hashes[place] = pack.columns.content_hash[row, 0]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(work, range(0, len(chosen), _ROWS_PER_TASK)))
    return hashes


def difference_hash(gray: NDArray[np.uint8]) -> int:
    """Return the 64-bit difference hash of a gray image, uint8 [H, W]."""
    small = np.asarray(Image.fromarray(gray).resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(small[:, 1:] < small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def _gray(pack: Pack, row: int) -> NDArray[np.uint8]:
    data, columns = pack.view(row), pack.columns
    if columns.encoding[row] == ENCODING_RAW:
        return data.reshape(int(columns.height[row]), int(columns.width[row]), 3)[:, :, 1]
    factor = factor_leaving(int(columns.height[row]), int(columns.width[row]), 32, 32)
    return decode_jpeg(data, factor, GRAY)[:, :, 0]


def near_pairs(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions whose hashes differ in at most `NEAR_BITS` bits.

    Positions with equal hashes form a chain: each is paired with the one before it. Two different hashes that
    are this close give one pair: the first position of each hash.
    """
    for rows in repeated_rows(hashes):
        yield from zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)
    values, first = np.unique(hashes, return_index=True)
    found: set[tuple[int, int]] = set()
    bits = 64 // _BANDS
    for band in range(_BANDS):
        keys = (values >> np.uint64(band * bits)) & np.uint64((1 << bits) - 1)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for group in np.split(order, edges):
            if len(group) > 1:
                found.update(_close_pairs(values, group))
    for a, b in sorted(found):
        yield tuple(sorted((int(first[a]), int(first[b]))))  # type: ignore[misc]


def _close_pairs(values: NDArray[np.uint64], group: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    for start in range(0, len(group), _PAIR_BLOCK):
        block = group[start : start + _PAIR_BLOCK]
        distance = np.bitwise_count(values[block][:, None] ^ values[group][None, :])
        for i, j in zip(*np.nonzero(distance <= NEAR_BITS), strict=True):
            a, b = int(block[i]), int(group[j])
            if a < b:
                yield a, b
