"""Measure the cycles per pixel of decoding a JPEG and of each part of the CPU's view kernels, on one thread.

Example:
    python tools/profile_kernels.py --resolution 96

The core's frequency is measured at the start by a chain of dependent instructions (one cycle each); it should
stay the same from then on. Each figure is of the fastest of several passes over crops of scikit-learn's
photographs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loaders.common.checks import Count, check_numbers
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Options of the profile."""

    resolution: Count = 96
    """Side of the views in pixels."""
    source: Count = 96
    """Side of the source images in pixels."""
    num_images: Count = 32
    """Images per pass."""
    passes: Count = 20
    """Passes; the fastest counts."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import simplejpeg
from numba import njit
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from loaders.backends.decoding import Decoder, EncodedRows
from loaders.common.errors import UserError
from loaders.common.tables import print_table
from loaders.kernels.memory import aligned_zeros
from loaders.kernels.views.render import make_scratch, render_chunk
from loaders.kernels.views.resample import table_taps
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.geometry import CenterCrop
from loaders.views.policy import (
    Augment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    Operation,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
    ViewPolicy,
)


@dataclass(frozen=True)
class Images:
    """Square images of one size, decoded and encoded.

    Attributes:
        planes: uint8, the 3 channel planes of each image in turn, then 64 zeros.
        starts: int64 [N], where each image begins in `planes`.
        sides: int64 [N], the height of each image, which is also its width.
        encoded: the JPEG bytes of each image.
    """

    planes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    sides: NDArray[np.int64]
    encoded: list[bytes]


@njit
def _chain(count, start):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    value = start
    for _ in range(count):
        value = (value ^ (value << 1)) + 1  # three one-cycle instructions; each needs the previous result
    return value


def cycles_per_second() -> float:
    """Return the core's present frequency in Hz, from the time of a loop of known length."""
    _chain(10, 1)
    best = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        _chain(3_000_000, 1)
        best = min(best, time.thread_time() - begin)
    return 3 * 3_000_000 / best


def photographs(config: Config) -> Images:
    """Return crops of scikit-learn's photographs, encoded as JPEG of quality 90 and decoded."""
    rng = np.random.default_rng(0)
    sources = load_sample_images().images
    largest = min(min(image.shape[:2]) for image in sources) - 1
    if not 0 < config.source <= largest:
        raise UserError(
            f"--source: expected 1 to {largest}, the size of the bundled photographs, found {config.source}; "
            "name a smaller side"
        )
    encoded, planes = [], []
    for i in range(config.num_images):
        image = sources[i % 2]
        y, x = (int(rng.integers(0, edge - config.source)) for edge in image.shape[:2])
        crop = np.ascontiguousarray(image[y : y + config.source, x : x + config.source])
        encoded.append(simplejpeg.encode_jpeg(crop, 90))
        planes.append(np.moveaxis(simplejpeg.decode_jpeg(encoded[-1]), -1, 0).ravel())
    starts = np.arange(config.num_images) * 3 * config.source**2
    sides = np.full(config.num_images, config.source)
    return Images(np.concatenate([*planes, np.zeros(64, np.uint8)]), starts, sides, encoded)


def view_runner(policy: ViewPolicy, images: Images, width: int) -> Callable[[int], Any]:
    """Return a function of an epoch that renders a view of every image, with random parameters."""
    count, resolution = len(images.starts), policy.resolution
    cubic = policy.interpolation == "bicubic"
    scratch = make_scratch(resolution, table_taps(width / resolution, cubic), width)
    out = aligned_zeros((count, 3 * resolution**2), np.float32)
    gain, bias = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    nothing = np.zeros(count, np.int64)
    regions = np.stack([nothing, nothing, images.sides, images.sides], axis=1)

    def run(epoch: int) -> None:
        p = draw(policy, 0, np.full(count, epoch), np.arange(count), 0, images.sides, images.sides)
        render_chunk(
            images.planes, images.starts, regions, p.box, p.window, p.shift, p.flip, cubic,
            policy.rounded, p.codes, p.args, gain, bias, scratch, resolution, False, out,
        )  # fmt: skip

    return run


def least_seconds(run: Callable[[int], Any], passes: int) -> float:
    """Return the mean CPU seconds per call in the fastest pass; a pass calls `run` for epochs 0, 1 and 2."""
    run(0)
    best = float("inf")
    for _ in range(passes):
        total = 0.0
        for epoch in range(3):
            begin = time.thread_time()
            run(epoch)
            total += time.thread_time() - begin
        best = min(best, total / 3)
    return best


def policies(resolution: int) -> dict[str, tuple[ViewPolicy, str | None]]:
    """Return views to profile by name, each with the name of the view whose time is subtracted, or None."""
    whole = ViewPolicy("copy", resolution, CenterCrop(1.0))
    crop = presets.crop_flip(resolution)
    found: dict[str, tuple[ViewPolicy, str | None]] = {
        "whole square (1 tap where sizes agree)": (whole, None),
        "random crop, flip, bilinear": (crop, None),
        "random crop, flip, bicubic": (replace(crop, interpolation="bicubic"), None),
        "barlow a": (presets.barlow_a(resolution), None),
        "barlow b": (presets.barlow_b(resolution), None),
        "FixMatch strong": (presets.fixmatch_strong(resolution), None),
    }
    operations: dict[str, Operation] = {
        "brightness": ColorJitter(brightness=0.4),
        "contrast": ColorJitter(contrast=0.4),
        "saturation": ColorJitter(saturation=0.4),
        "hue": ColorJitter(hue=0.1),
        "grayscale": Grayscale(1.0),
        "solarize": Solarize(1.0),
        "blur, sigma 0.5": GaussianBlur(1.0, (0.5, 0.5)),
        "blur, sigma 1": GaussianBlur(1.0, (1.0, 1.0)),
        "blur, sigma 2": GaussianBlur(1.0, (2.0, 2.0)),
        "affine": RandomAffine(degrees=20.0),
        "cutout": Cutout(),
        "erasing by noise, a fifth of the view": RandomErasing(1.0, (0.2, 0.2)),
    }
    for augment in (Augment("autocontrast"), Augment("equalize"), Augment("posterize", 5.0, 5.0)):
        operations[augment.name] = RandAugment((augment,), 1, 1.0)
    operations["sharpness"] = RandAugment((Augment("sharpness", 0.3, 0.3),), 1, 1.0)
    base = "whole square (1 tap where sizes agree)"
    return found | {name: (replace(whole, operations=(op,)), base) for name, op in operations.items()}


def main() -> None:
    """Profile every part and print the table."""
    config = command_line(Config, __doc__)
    images = photographs(config)
    frequency = cycles_per_second()
    pixels = config.num_images * config.resolution**2
    table = Table(
        "part", "us per view", "cycles per pixel", title=f"{config.source} -> {config.resolution} px"
    )

    def report(name: str, seconds: float) -> None:
        microseconds, cycles = seconds / config.num_images * 1e6, seconds * frequency / pixels
        table.add_row(name, f"{microseconds:.1f}", f"{cycles:.2f}")

    data = [np.frombuffer(encoded, np.uint8) for encoded in images.encoded]
    rows = EncodedRows.of_jpegs(data, images.sides, images.sides)
    decoder, starts, planes = Decoder(), images.starts.copy(), np.empty_like(images.planes)
    report(
        "JPEG decode, into planes",
        least_seconds(lambda _: decoder.decode(rows, 0, starts, planes), config.passes),
    )
    seconds: dict[str, float] = {}
    for name, (policy, base) in policies(config.resolution).items():
        seconds[name] = least_seconds(view_runner(policy, images, config.source), config.passes)
        report(name if base is None else f"  + {name}", seconds[name] - (seconds[base] if base else 0.0))
    print_table(Console(), table)
    print(f"core at {frequency / 1e9:.2f} GHz; rows with + are added to the whole square")


if __name__ == "__main__":
    run_command(main)
