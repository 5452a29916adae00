"""The two forms of the horizontal pass: what a machine without wide permutes runs, and what one with them."""

import numpy as np
import pytest

from loaders.views.kernels.compile import kernel
from loaders.views.kernels.resample import (
    LINES,
    block_columns,
    fill_taps,
    gather_columns,
    sum_columns,
    table_taps,
    turn_lines,
)
from loaders.views.kernels.simd import LANES

SLACK = 4 * LANES


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
def test_both_forms_and_plain_loops_agree(members, cubic, flip, width, box, resolution):
    padded = -(-resolution // LANES) * LANES
    most = table_taps(box[1] / resolution, cubic)
    first = np.zeros(padded, np.int32)
    weights = np.full(most * padded, np.nan, np.float32)
    taps = fill_taps(
        box[0], box[1], 0, width, resolution, 0, flip, cubic, first, weights, np.zeros((3, padded))
    )
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
        assert (form[:, members * resolution + LANES :] == -1).all()  # nothing far behind is written
