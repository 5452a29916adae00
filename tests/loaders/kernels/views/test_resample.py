"""All methods of resampling, not only the one that is fastest on this machine, equal plain sums."""

import numpy as np
import pytest

from loaders.kernels.cache import kernel
from loaders.kernels.simd import LANES
from loaders.kernels.views.render import make_scratch
from loaders.kernels.views.resample import (
    COPY,
    LINES,
    SHRINK,
    WIDEN,
    block_columns,
    fill_taps,
    gather_columns,
    prepare_tables,
    resample_rows,
    sum_columns,
    table_taps,
    turn_lines,
)

SLACK = 4 * LANES


@kernel
def fill(start, length, size, resolution, shift, flip, cubic, first, weights, axis):
    return fill_taps(start, length, 0, size, resolution, shift, flip, cubic, first, weights, axis)


@kernel
def gather(line, pitch, left, first, weights, padded, taps, base, out, plane, resolution, members):
    block_columns(first, padded, left, base)
    for k in range(members):
        gather_columns(
            line, pitch, 3 * k * pitch, first, base, weights, padded, taps, out, plane, k * resolution
        )


@kernel
def turn(
    line, pitch, count, left, first, weights, padded, taps, columns, sums, out, plane, resolution, members
):
    turn_lines(line, pitch, count, columns)
    sum_columns(columns, pitch, left, first, weights, padded, taps, sums, members, resolution, out, plane, 0)


@pytest.mark.parametrize("members", [1, 3, LINES])
@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("width", "box", "resolution"),
    [(40, (3, 30), 96), (40, (0, 40), 21), (300, (17.5, 211.25), 32), (9, (2, 1), 8), (2000, (5, 1900), 20)],
)
def test_both_forms_of_shrinking_agree_with_plain_sums(members, cubic, flip, width, box, resolution):
    padded = -(-resolution // LANES) * LANES
    most = table_taps(box[1] / resolution, cubic)
    first = np.zeros(padded, np.int32)
    weights = np.full(most * padded, np.nan, np.float32)
    start, length = map(float, box)  # one type, as each takes three seconds to compile
    taps = fill(start, length, width, resolution, 0, flip, cubic, first, weights, np.zeros((3, padded)))
    left = int(first[:resolution].min())
    count = min(int(first[:resolution].max()) + taps, width) - left
    pitch = count + most + SLACK
    values = np.random.default_rng(0).uniform(0, 255, (LINES, 3, pitch)).astype(np.float32)

    table = weights.reshape(most, padded)[:taps]
    source = values[:, :, np.minimum(first[:resolution] - left + np.arange(taps)[:, None], pitch - 1)]
    expected = np.einsum("kctr,tr->ckr", source, table[:, :resolution])[:, :members].clip(0, 255)

    plane = LINES * resolution + SLACK
    found = np.full((2, 3, plane), -1, np.float32)
    line, columns = values.ravel(), np.zeros(3 * pitch * LINES, np.float32)
    sums = np.zeros(3 * LINES * LANES, np.float32)
    turn(
        line, pitch, count, left, first, weights, padded, taps, columns, sums, found[0].ravel(), plane,
        resolution, members,
    )  # fmt: skip
    base = np.zeros(2 * padded // LANES, np.int32)
    gather(
        line, pitch, left, first, weights, padded, taps, base, found[1].ravel(), plane, resolution, members
    )
    for form in found:
        rows = form[:, : members * resolution].reshape(3, members, resolution)
        np.testing.assert_allclose(rows, expected, atol=2e-3)
        assert (form[:, members * resolution + LANES :] == -1).all()  # nothing beyond the padding is written


@kernel
def resample(planes, region, box, window, shift, flip, cubic, resolution, scratch, out):
    extent = prepare_tables(region, box, window, shift, flip, cubic, False, resolution, scratch)
    for top in range(0, resolution, 16):
        resample_rows(
            planes, region[2], region[3], extent, scratch, resolution, top, min(16, resolution - top), out,
            resolution**2 + LANES, top * resolution,
        )  # fmt: skip
    return extent


def axis_table(start, length, size, resolution, shift, flip, cubic):
    """Return the weight of each source pixel in each output pixel, float64 [resolution, size]."""
    padded = -(-resolution // LANES) * LANES
    start, length = float(start), float(length)
    most = table_taps(length / resolution, cubic)
    first, weights = np.zeros(padded, np.int32), np.zeros(most * padded, np.float32)
    taps = fill(start, length, size, resolution, shift, flip, cubic, first, weights, np.zeros((3, padded)))
    table = np.zeros((resolution, size + taps))
    for t in range(taps):
        table[np.arange(resolution), first[:resolution] + t] += weights.reshape(most, padded)[t, :resolution]
    return table[:, :size]


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize(
    ("size", "box", "resolution", "shift", "flip", "way"),
    [
        ((40, 50), (3, 5, 30, 33.5), 96, (0, 0), True, WIDEN),
        ((40, 50), (0, 0, 40, 50), 53, (0, 0), False, WIDEN),
        ((90, 30), (1, 2, 80, 25), 40, (0, 0), True, WIDEN),  # reduces the height, but not the width
        ((40, 50), (3, 5, 30, 33), 40, (-9, 7), False, WIDEN),  # shifted, with reflected borders
        ((3, 1), (0, 0, 3, 1), 17, (0, 0), True, WIDEN),
        ((700, 30), (0, 2, 700, 25), 40, (0, 0), False, SHRINK),  # more rows at a time than the buffer holds
        ((60, 90), (0, 2, 50, 85), 50, (0, 0), True, SHRINK),
        ((60, 90), (4, 2, 50, 50), 50, (3, -2), True, COPY),
    ],
)
def test_each_view_is_made_in_its_way_and_has_the_plain_sums(size, box, resolution, shift, flip, way, cubic):
    (height, width), (top, left, rows, columns) = size, box
    planes = np.random.default_rng(0).integers(0, 256, 3 * height * width + 64, dtype=np.uint8)
    scratch = make_scratch(resolution, table_taps(max(rows, columns) / resolution, cubic), width)
    out = np.full(3 * (resolution**2 + LANES), np.nan, np.float32)
    extent = resample(
        planes, np.array([0, 0, height, width]), np.array([top, left, rows, columns], np.float64),
        np.array([0, 0, height, width], np.int32), np.array(shift, np.int32), flip, cubic, resolution,
        scratch, out,
    )  # fmt: skip
    assert extent[-1] == way
    image = planes[: 3 * height * width].reshape(3, height, width).astype(np.float64)
    vertical = axis_table(top, rows, height, resolution, shift[0], False, cubic)
    horizontal = axis_table(left, columns, width, resolution, shift[1], flip, cubic)
    expected = np.einsum("yh,chw,xw->cyx", vertical, image, horizontal).clip(0, 255)
    found = out.reshape(3, -1)[:, : resolution**2].reshape(3, resolution, resolution)
    np.testing.assert_allclose(found, expected, atol=2e-3)
