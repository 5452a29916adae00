"""Shrinking an image with a Hamming filter: tables, and the call of the compiled code."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loaders.packs.stored.kernel import Kept, StoredKernel

MIN_ROW_BYTES = 16  # of the source: a whole vector
_LANES = 16
_ROWS = 8
_shrink = StoredKernel("packing.shrink", "shrink")
_hamming_taps = StoredKernel("packing.shrink", "hamming_taps")


class Side(NamedTuple):
    """How one axis shrinks.

    Attributes:
        length: source pixels.
        size: output pixels.
        scale: source pixels per output pixel.
        num_places: output pixels with padding, which repeats the last one.
    """

    length: int
    size: int
    scale: float
    num_places: int


class Plane(NamedTuple):
    """One plane of an image, or an image whose channels lie side by side, and how it shrinks.

    Attributes:
        rows: how many rows become how many.
        columns: the same for columns.
        num_channels: values of a pixel.
    """

    rows: Side
    columns: Side
    num_channels: int = 1

    @property
    def num_values(self) -> int:
        """Values of a row of the source; at least `MIN_ROW_BYTES`."""
        return self.columns.length * self.num_channels

    @property
    def size_bytes(self) -> int:
        """Bytes of the result."""
        return self.rows.num_places * self.columns.num_places * self.num_channels


class ShrinkPlan(NamedTuple):
    """Tables for shrinking some planes, the results one behind the other.

    Attributes:
        facts: int64 [P, 11], per plane what the columns of `loaders.packs.stored.sizes.PLANE_...` say.
        first: int64, all tables of first source pixels.
        weights: float32, all tables of weights.
        num_floats: scratch for eight rows of the widest plane.
        num_bytes: likewise.
        ends: where the result of each plane ends.
    """

    facts: Kept
    first: Kept
    weights: Kept
    num_floats: int
    num_bytes: int
    ends: tuple[int, ...]


@lru_cache(maxsize=512)
def plan_shrinking(planes: tuple[Plane, ...]) -> ShrinkPlan:
    """Return the tables for some planes."""
    sides = [side for plane in planes for side in (plane.rows, plane.columns)]
    num_places = sum(side.num_places for side in sides)
    most_taps = max(int(2 * max(side.scale, 1.0)) + 2 for side in sides)
    first, weights = np.empty(num_places, np.int64), np.empty(num_places * most_taps, np.float32)
    taps, sums = np.empty(len(sides), np.int64), np.empty(most_taps)
    _hamming_taps(np.array(sides, np.float64), first, weights, taps, sums)
    counts = iter(zip(sides, taps.tolist(), strict=True))
    facts, ends, at, weight_at = [], [0], 0, 0
    for plane in planes:
        tables = []
        for side, count in islice(counts, 2):
            tables += [at, weight_at, count, side.num_places]
            at, weight_at = at + side.num_places, weight_at + side.num_places * count
        facts.append([plane.num_values, plane.num_channels, ends[-1], *tables])
        ends.append(ends[-1] + plane.size_bytes)
    return ShrinkPlan(
        Kept(np.array(facts, np.int64)),
        Kept(first),
        Kept(weights),
        _ROWS * (_LANES + max(plane.num_values for plane in planes)),
        _ROWS * max(plane.columns.num_places * plane.num_channels for plane in planes),
        tuple(ends[1:]),
    )


def shrink_planes(
    out: Kept, data: Kept, places: NDArray[np.int64], plan: ShrinkPlan, floats: Kept, sums: Kept
) -> None:
    """Resize some planes as Pillow does with its Hamming filter, rounding once.

    Args:
        out: uint8 [>= plan.ends[-1]], results, one behind the other.
        data: uint8, what holds the sources.
        places: int64 [P, 2], where each source begins, bytes from one of its rows to the next.
        plan: of P planes.
        floats: float32 [>= plan.num_floats], scratch.
        sums: uint8 [>= plan.num_bytes], scratch.
    """
    _shrink(data, places, plan.facts, plan.first, plan.weights, floats, sums, out)


def shrink_hamming(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize one image as `shrink_planes` does.

    Args:
        pixels: uint8 [H, W, 3], contiguous, at least 6 wide.
        height: rows of the result.
        width: columns of the result.

    Returns:
        uint8 [height, width, 3], contiguous.
    """
    out = np.empty((height, width, 3), np.uint8)
    rows = Side(pixels.shape[0], height, pixels.shape[0] / height, height)
    columns = Side(pixels.shape[1], width, pixels.shape[1] / width, width)
    plan = plan_shrinking((Plane(rows, columns, 3),))
    floats, sums = np.empty(plan.num_floats, np.float32), np.empty(plan.num_bytes, np.uint8)
    places = np.array([[0, 3 * pixels.shape[1]]])
    shrink_planes(Kept(out.reshape(-1)), Kept(pixels.reshape(-1)), places, plan, Kept(floats), Kept(sums))
    return out
