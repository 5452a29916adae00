"""Divide images among splits: class by class, in given shares, with all copies of an image in one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError

_SHARE_ERROR = 1e-6  # allowed in the sum of shares, since floats such as 0.33 are not exact
_SHOWN_CLASSES = 5


class SplitDivision(NamedTuple):
    """How one source becomes several splits.

    Attributes:
        shares: share of every class that each split gets; all shares together are 1.
        near: whether images that look the same also stay in one split.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    seed: int = 0
    near: bool = False

    def __str__(self) -> str:
        """Return shares, seed and `near` as text, such as "0.8,0.2 (seed 0)"."""
        near = ", near copies together" if self.near else ""
        return f"{','.join(f'{share:g}' for share in self.shares)} (seed {self.seed}{near})"


def parse_shares(text: str, num_parts: int, what: str) -> tuple[float, ...]:
    """Parse shares such as "0.8,0.1,0.1"; the last share may be left out and is then the rest.

    Args:
        text: numbers between 0 and 1, separated by commas.
        what: begins the error message.

    Raises:
        UserError: a share that is no number between 0 and 1, a wrong number of shares, or a sum other than 1.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) == num_parts - 1:
        shares.append(round(1 - sum(shares), 9))
    example = "0.8" if num_parts == 2 else ",".join(["0.8", *["0.1"] * (num_parts - 2)])
    if len(shares) != num_parts or not all(0 < share < 1 for share in shares):
        raise UserError(
            f"{what}: expected {num_parts} shares between 0 and 1 that sum to 1, or all but the last, found "
            f"{text!r}; write e.g. {example}"
        )
    if abs(sum(shares) - 1) > _SHARE_ERROR:
        raise UserError(
            f"{what}: shares must sum to 1, found {text}, which sum to {sum(shares):g}; correct them"
        )
    return tuple(shares)


def joined_groups(num_images: int, hashes: NDArray[np.uint64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the group of each image, int64 [N] in [0, G); images of equal hash or of a pair share a group.

    Args:
        num_images: N.
        hashes: uint64 [N, 2], content hashes.
        pairs: int64 [P, 2], positions of images that look the same; pairs with a common image are joined.
    """
    _, groups = np.unique(hashes, axis=0, return_inverse=True)
    groups = groups.reshape(num_images).astype(np.int64)
    if not len(pairs):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(groups.max()) + 1
    edges = coo_array((np.ones(len(pairs)), (groups[pairs[:, 0]], groups[pairs[:, 1]])), shape=(size, size))
    joined: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return joined[groups]


def divide(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Assign each image to a part, depending on contents, labels, shares and seed.

    A group goes to one part as a whole and belongs to the class of its first image. The groups of a class
    are taken from large to small, groups of equal size in an order that hashes and seed decide; each goes to
    the part whose share lacks the most images. If a class has at least as many groups as there are parts,
    every part gets one or more. File names have no effect unless labels differ within a group.

    Args:
        labels: int64 [N], -1 for images without a label, which are divided like a class.
        groups: int64 [N], see `joined_groups`.
        hashes: uint64 [N], first 64 bits of the content hashes.
        shares: share of each of the P parts; they sum to 1.
        seed: at least 0.

    Returns:
        int64 [N], the part of each image, in [0, P).
    """
    groups = groups.astype(np.int64)
    _, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(len(labels))
    # A group is represented by its smallest hash, which depends only on the contents.
    smallest = np.full(len(sizes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, inverse, hashes)
    mixed = _mixed(smallest, seed)
    part = np.zeros(len(sizes), np.int64)
    for label in np.unique(labels[first]).tolist():
        own = np.flatnonzero(labels[first] == label)
        own = own[np.lexsort((mixed[own], -sizes[own]))]
        part[own] = _fill(sizes[own], shares)
    return part[inverse]


def _fill(sizes: NDArray[np.int64], shares: Sequence[float]) -> NDArray[np.int64]:
    """Return the part of each group of a class; groups are taken in the given order."""
    lacks = [float(quota) for quota in _quotas(int(sizes.sum()), shares)]
    part = np.zeros(len(sizes), np.int64)
    for number, size in enumerate(sizes.tolist()):
        part[number] = place = max(range(len(lacks)), key=lacks.__getitem__)
        lacks[place] -= size
    counts = np.bincount(part, minlength=len(shares))
    while len(sizes) >= len(shares) and (counts == 0).any():  # large groups left a part empty
        number = int(np.flatnonzero(part == counts.argmax())[-1])
        part[number] = counts.argmin()
        counts = np.bincount(part, minlength=len(shares))
    return part


def _quotas(count: int, shares: Sequence[float]) -> list[int]:
    """Divide `count` images by largest remainders; if there are enough, every part gets at least one."""
    exact = [count * share for share in shares]
    quotas = [int(value + 1e-9) for value in exact]
    by_rest = sorted(range(len(shares)), key=lambda i: quotas[i] - exact[i])
    for place in by_rest[: count - sum(quotas)]:
        quotas[place] += 1
    while count >= len(quotas) and min(quotas) == 0:
        quotas[quotas.index(max(quotas))] -= 1
        quotas[quotas.index(0)] += 1
    return quotas


def _mixed(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return hashes mixed with a seed by the finalizer of SplitMix64 (Steele et al., 2014), for ordering."""
    value = hashes ^ np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed


def scarce_note(
    labels: NDArray[np.int64], parts: NDArray[np.int64], names: Sequence[str], classes: Sequence[str]
) -> str | None:
    """Return a note on classes that are missing in some part, naming up to five; None if all are complete.

    Args:
        labels: int64 [N], indices into `classes`, -1 for images without a label.
        parts: int64 [N], as returned by `divide`.
    """
    known = labels >= 0
    counts = np.zeros((len(classes), len(names)), np.int64)
    np.add.at(counts, (labels[known], parts[known]), 1)
    scarce = np.flatnonzero((counts == 0).any(1) & (counts > 0).any(1)).tolist()
    if not scarce:
        return None
    shown = [
        f"{classes[label]} ({counts[label].sum()}, none in "
        f"{' and '.join(name for name, count in zip(names, counts[label], strict=True) if not count)})"
        for label in scarce[:_SHOWN_CLASSES]
    ]
    more = f" and {len(scarce) - _SHOWN_CLASSES:,} more" if len(scarce) > _SHOWN_CLASSES else ""
    return f"some classes have too few images for all of {', '.join(names)}: {', '.join(shown)}{more}"
