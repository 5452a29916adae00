"""Render one view of one decoded image by calling the kernel directly."""

import numpy as np

from loaders.kernels.views.render import make_scratch, render_chunk
from loaders.kernels.views.resample import table_taps


def render(image, policy, parameters):
    """Return the view as float32 [3, R, R] in [0, 255]."""
    height, width, _ = image.shape
    resolution = policy.resolution
    planes = np.concatenate([np.moveaxis(image, -1, 0).ravel(), np.zeros(64, np.uint8)])
    cubic = policy.interpolation == "bicubic"
    p = parameters
    taps = table_taps(float(p.box[0, 2:].max()) / resolution, cubic)
    out = np.full((1, 3 * resolution * resolution), np.nan, np.float32)
    render_chunk(
        planes, np.zeros(1, np.int64), np.array([[0, 0, height, width]]), p.box[:1], p.window[:1],
        p.shift[:1], p.flip[:1], cubic, policy.rounded, p.codes[:1], p.args[:1], np.ones(3, np.float32),
        np.zeros(3, np.float32), make_scratch(resolution, taps, width), resolution, False, out,
    )  # fmt: skip
    return out.reshape(3, resolution, resolution)
