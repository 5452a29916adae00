"""Write the data of the GPU suite: images, random numbers drawn for views, and the cpu backend's views.

    python tools/gpu/cases.py CASES.npz

Copy the file to a GPU machine together with the checkout. Most groups of `tools/gpu/suite.py` then need only
torch, Triton and numpy there. Without a file, tools/gpu_suite.sh writes one, if Sluice's other libraries are
installed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

# isort: split

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from loaders.backends.cpu import normalization
from loaders.kernels.views.render import make_scratch, render_chunk
from loaders.kernels.views.resample import table_taps
from loaders.views import presets
from loaders.views.draw import ViewParameters, draw
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import Standardize, ViewPolicy

SPEED_BATCH = 256
SPEED = {32: 32, 96: 128, 224: 256}
"""In measurements of speed: side of the views -> side of the images, in pixels."""


def images_of(count: int, sides: tuple[int, int] = (24, 120)) -> list[NDArray[np.uint8]]:
    """Return images of waves and noise, uint8 [H, W, 3], with random H and W in [sides[0], sides[1])."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        height, width = rng.integers(*sides, 2)
        y, x = np.mgrid[:height, :width, :1][:2]
        waves = np.sin(y / rng.uniform(3, 20, 3) + x / rng.uniform(3, 20, 3) + rng.uniform(0, 6, 3))
        noise = rng.normal(0, 8, (height, width, 3))
        found.append(np.clip(128 + 100 * waves + noise, 0, 255).astype(np.uint8))
    return found


def policies(side: int) -> list[ViewPolicy]:
    """Return policies to compare: presets (one rotation, one tile) and a view resized to whole pixels."""
    return [
        presets.crop_flip(side), presets.weak(side), presets.barlow_a(side), presets.barlow_b(side),
        presets.simclr(side), presets.fixmatch_strong(side), presets.fixmatch_strong_gentle(side),
        presets.rotate_translate_jitter(side), presets.rotations(side)[1], presets.tiles(side, side + 4)[4],
        presets.reconstruction(side), presets.evaluation(side), presets.mirrored(side),
        replace(EvaluationView(side, 0.875, whole_pixels=True).policy(), name="rounded"),
    ]  # fmt: skip


def _numbers(prefix: str, drawn: ViewParameters) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{field.name}": getattr(drawn, field.name) for field in fields(drawn)}


def _views(images: list[NDArray[np.uint8]], view: ViewPolicy, drawn: ViewParameters) -> NDArray[np.float32]:
    """Return the cpu backend's views, float32 [B, 3, R, R]."""
    cubic, side = view.interpolation == "bicubic", view.resolution
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    planes = np.concatenate([*(image.transpose(2, 0, 1).ravel() for image in images), np.zeros(64, np.uint8)])
    sizes = 3 * heights * widths
    regions = np.stack([0 * heights, 0 * heights, heights, widths], axis=1)
    out = np.zeros((len(images), 3 * side**2), np.float32)
    scratch = make_scratch(side, table_taps(float(drawn.box[:, 2:].max()) / side, cubic), int(widths.max()))
    render_chunk(
        planes, np.cumsum(sizes) - sizes, regions, drawn.box, drawn.window, drawn.shift, drawn.flip, cubic,
        view.rounded, drawn.codes, drawn.args, *normalization(view, np.dtype("float32")), scratch, side,
        False, out,
    )  # fmt: skip
    return out.reshape(-1, 3, side, side)


def write(path: Path, side: int = 40, count: int = 24) -> None:
    """Write `count` images with views of `side` pixels, and random numbers for the sides in `SPEED`."""
    images = images_of(count)
    rows = np.arange(count)
    content: dict[str, Any] = {"pixels": np.concatenate([image.ravel() for image in images])}
    content["sizes"] = np.array([image.shape[:2] for image in images])
    about: dict[str, Any] = {"parity": [], "speed": []}
    for view in policies(side):
        plain = view if isinstance(view.normalize, Standardize) else replace(view, normalize=None)
        drawn = draw(plain, 3, 0 * rows, rows, 256, *content["sizes"].T)
        gain, bias = normalization(plain, np.dtype("float32"))
        content |= _numbers(view.name, drawn) | {f"{view.name}.views": _views(images, plain, drawn)}
        content |= {f"{view.name}.gain": gain, f"{view.name}.bias": bias}
        about["parity"].append([view.name, side, view.interpolation == "bicubic", view.rounded])
    rows = np.arange(SPEED_BATCH)
    for side_of_view, side_of_image in SPEED.items():
        sides = np.full(SPEED_BATCH, side_of_image)
        for view in policies(side_of_view)[:6]:
            name = f"{view.name}@{side_of_view}"
            content |= _numbers(name, draw(view, 3, 0 * rows, rows, 256, sides, sides))
            about["speed"].append([name, side_of_view, side_of_image, view.interpolation == "bicubic"])
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(path, **content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
