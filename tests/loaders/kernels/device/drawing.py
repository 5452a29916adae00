"""Render one batch of views with the device kernels, and with those of the cpu backend."""

import numpy as np
import torch

from loaders.backends.cpu import normalization
from loaders.kernels.device.launch import Layout, draw_views, extent_of, import_kernels, parameters_of
from loaders.kernels.views.render import make_scratch, render_chunk
from loaders.kernels.views.resample import table_taps
from loaders.views.draw import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CARRIERS = {torch.float32: "float32", torch.float16: "int16", torch.bfloat16: "uint16", torch.uint8: "uint8"}


def sides(images):
    return (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))


def parameters(images, view, seed=3):
    heights, widths = sides(images)
    rows = np.arange(len(images))
    return draw(view, seed, 0 * rows, rows, 256, heights, widths)


def on_device(images, view, drawn, dtype=torch.float32, channels_last=False, interleaved=False):
    """Render with the device kernels; return [B, 3, R, R] on the host, and the number of launches."""
    cubic, side = view.interpolation == "bicubic", view.resolution
    held = [
        torch.from_numpy(image if interleaved else np.ascontiguousarray(image.transpose(2, 0, 1))).to(DEVICE)
        for image in images
    ]
    address = np.array([one.data_ptr() for one in held], np.int64)
    p = parameters_of(address, *sides(images), drawn, side, cubic)
    extent = extent_of(p, side)
    p = type(p)(*(tensor.to(DEVICE) for tensor in p))
    kind = np.dtype("uint8" if dtype == torch.uint8 else "float32")
    gain, bias = (torch.from_numpy(part).to(DEVICE) for part in normalization(view, kind))
    out = torch.zeros(len(images) * 3 * side**2, dtype=dtype, device=DEVICE)
    layout = Layout(side, channels_last, cubic, interleaved, view.rounded)
    launches = draw_views(p, extent, layout, gain, bias, out, import_kernels())
    shape = (len(images), side, side, 3) if channels_last else (len(images), 3, side, side)
    found = out.cpu().view(shape)
    return (found.permute(0, 3, 1, 2) if channels_last else found), launches


def on_host(images, view, drawn, dtype=torch.float32):
    """Render with the cpu backend's kernels; return [B, 3, R, R]."""
    cubic, side = view.interpolation == "bicubic", view.resolution
    heights, widths = sides(images)
    planes = np.concatenate([*(image.transpose(2, 0, 1).ravel() for image in images), np.zeros(64, np.uint8)])
    sizes = 3 * heights * widths
    regions = np.stack([0 * heights, 0 * heights, heights, widths], axis=1)
    kind = np.dtype("uint8" if dtype == torch.uint8 else "float32")
    out = np.zeros((len(images), 3 * side**2), CARRIERS[dtype])
    scratch = make_scratch(side, table_taps(float(drawn.box[:, 2:].max()) / side, cubic), int(widths.max()))
    render_chunk(
        planes, np.cumsum(sizes) - sizes, regions, drawn.box, drawn.window, drawn.shift, drawn.flip, cubic,
        view.rounded, drawn.codes, drawn.args, *normalization(view, kind), scratch, side, False, out,
    )  # fmt: skip
    return torch.from_numpy(out).view(dtype).view(-1, 3, side, side)
