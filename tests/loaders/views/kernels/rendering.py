"""One view of one decoded image, straight from the kernel."""

import numpy as np

from loaders.views.kernels.render import make_scratch, render_view
from loaders.views.kernels.resample import table_taps


def render(image, policy, parameters):
    """Return the view as float32 [3, R, R] in [0, 255]."""
    height, width, _ = image.shape
    resolution = policy.resolution
    planes = np.concatenate([np.moveaxis(image, -1, 0).ravel(), np.zeros(64, np.uint8)])
    cubic = policy.interpolation == "bicubic"
    p = parameters
    taps = table_taps(float(p.box[0, 2:].max()) / resolution, cubic)
    out = np.full(3 * resolution * resolution, np.nan, np.float32)
    region = np.array([0, 0, height, width])
    render_view(
        planes, region, p.box[0], p.window[0], p.shift[0], p.flip[0], cubic, p.codes[0], p.args[0],
        np.ones(3, np.float32), np.zeros(3, np.float32), make_scratch(resolution, taps, width), resolution,
        False, out,
    )  # fmt: skip
    return out.reshape(3, resolution, resolution)
