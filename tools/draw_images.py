"""Draw any number of small, varied JPEG files in class folders, some damaged: input for packing tests.

Example:
    python tools/draw_images.py --out images96 --num-images 512000
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tyro
from numpy.typing import NDArray
from PIL import Image

from engine.files import check_folder
from loaders.checks import check_whole
from loaders.cores import available_cores
from loaders.errors import UserError, check_numbers, run_command
from loaders.packs.kernels.memory import kernel

_PER_TASK = 2000
_BANK = 64
_BANK_PX = 256
_DAMAGED_EVERY = 100
NUM_DAMAGES = 10


@dataclass(frozen=True)
class Config:
    """Draw JPEG files; every hundredth is damaged, in ten ways that no packer may let through."""

    out: Path
    """Folder to make; must not exist."""
    num_images: int = 512_000
    """Files to draw."""
    num_classes: int = 100
    """Class folders."""
    resolution: int = 96
    """Middle of the sides in pixels, which vary by a quarter."""
    seed: int = 0
    """Seed of everything that is drawn."""
    damaged: bool = True
    """Damage every hundredth file."""
    workers: int = 0
    """Processes at work, 0 for one per core; never changes a byte."""

    def __post_init__(self) -> None:
        """Refuse numbers that draw nothing, sides that no texture has, and a folder that cannot be made."""
        check_numbers(self)
        check_whole("resolution", self.resolution, 16, _BANK_PX, "the textures have no more pixels")
        check_folder(self.out)


def main() -> None:
    """Parse the command line and draw."""
    config = tyro.cli(Config, description=__doc__)
    start = time.perf_counter()
    draw(config)
    seconds = time.perf_counter() - start
    rate = config.num_images / seconds
    print(f"{config.num_images:,} files in {seconds:.1f} s, {rate:,.0f} images/s -> {config.out}")


def draw(config: Config) -> None:
    """Draw all files.

    Raises:
        UserError: the folder exists.
    """
    if config.out.exists():
        raise UserError(f"{config.out} exists: give a folder that does not")
    for label in range(config.num_classes):
        (config.out / f"class{label:04d}").mkdir(parents=True)
    tasks = [(config, first) for first in range(0, config.num_images, _PER_TASK)]
    workers = min(config.workers or available_cores(), len(tasks))
    if workers == 1:
        for task in tasks:
            _draw_some(task)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(_draw_some, tasks):
            pass


_banks: dict[int, NDArray[np.uint8]] = {}


def _bank(seed: int) -> NDArray[np.uint8]:
    """Return uint8 [64, 256, 256, 3], smooth and rough textures that pictures are mixed from."""
    if seed not in _banks:
        rng = np.random.default_rng([seed, 1])
        textures = []
        for number in range(_BANK):
            grain = 4 << (number % 5)
            small = Image.fromarray(rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8))
            textures.append(np.asarray(small.resize((_BANK_PX, _BANK_PX), Image.Resampling.BICUBIC)))
        _banks[seed] = np.stack(textures)
    return _banks[seed]


def _draw_some(task: tuple[Config, int]) -> None:
    config, first = task
    rng = np.random.default_rng([config.seed, 2, first])
    count = min(_PER_TASK, config.num_images - first)
    low, high = config.resolution * 3 // 4, config.resolution * 5 // 4
    sides = np.minimum(rng.integers(low, high + 1, (count, 2)), _BANK_PX).tolist()
    kinds = rng.integers(0, _BANK, (count, 2)).tolist()
    places = rng.random((count, 4)).tolist()
    shares = rng.integers(0, 257, count).tolist()
    qualities = rng.integers(70, 96, count).tolist()
    bank = _bank(config.seed)
    folders = [f"{config.out}/class{label:04d}" for label in range(config.num_classes)]
    # Class by class: making files in turns in a hundred folders takes the disk's journal twice as long.
    for i in sorted(
        range(count),
        key=lambda i: (first + i + first // _PER_TASK * (config.num_classes // 2)) % config.num_classes,
    ):
        number = first + i
        pixels = _mix(bank, kinds[i], sides[i], places[i], shares[i])
        data = simplejpeg.encode_jpeg(pixels, qualities[i], "rgb", "420")
        if config.damaged and number % _DAMAGED_EVERY == _DAMAGED_EVERY - 1:
            data = damage(data, number // _DAMAGED_EVERY % NUM_DAMAGES)
        path = f"{folders[number % config.num_classes]}/{number:09d}.jpg"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.write(file, data)
        finally:
            os.close(file)


def _mix(
    bank: NDArray[np.uint8], kinds: list[int], sides: list[int], places: list[float], share: int
) -> NDArray[np.uint8]:
    """Blend a window of one texture with a window of another."""
    height, width = sides
    corners = []
    for kind, y, x in ((kinds[0], places[0], places[1]), (kinds[1], places[2], places[3])):
        top, left = int(y * (_BANK_PX - height + 1)), int(x * (_BANK_PX - width + 1))
        corners.append(3 * ((kind * _BANK_PX + top) * _BANK_PX + left))
    mixed = np.empty((height, width, 3), np.uint8)
    _blend(bank.reshape(-1), corners[0], corners[1], np.uint16(share), mixed.reshape(height, 3 * width))
    return mixed


@kernel
def _blend(bank, first, second, share, mixed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Blend two windows that begin at `first` and `second` of the bank; share is out of 256."""
    size = mixed.shape[1]
    for y in range(mixed.shape[0]):
        at, other = first + y * 3 * _BANK_PX, second + y * 3 * _BANK_PX
        # Slices, since an index that might be negative would keep the loop from becoming vectors.
        ones, others, row = bank[at : at + size], bank[other : other + size], mixed[y]
        for i in range(size):
            row[i] = (np.uint16(ones[i]) * share + np.uint16(others[i]) * np.uint16(256 - share)) >> 8


def damage(data: bytes, way: int) -> bytes:
    """Return a damaged form of a JPEG.

    Args:
        data: a baseline JPEG.
        way: 0 to 9.
    """
    frame = data.index(b"\xff\xc0")
    table = data.index(b"\xff\xc4")
    match way:
        case 0:
            return b""
        case 1:
            return data[: len(data) // 2]
        case 2:
            return data[:-2]  # the end mark alone
        case 3:
            return data[:100]  # inside its heading
        case 4:
            return b"404 Not Found\n"
        case 5:
            return b"<!doctype html><title>Sign in</title>" + bytes(500)
        case 6:
            return (
                data[: table + 5] + bytes(b ^ 0x5A for b in data[table + 5 : table + 21]) + data[table + 21 :]
            )
        case 7:
            return data[: frame + 5] + b"\0\0" + data[frame + 7 :]  # no height
        case 8:
            return data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :]  # a decompression bomb
        case _:
            return b"\x89PNG\r\n\x1a\n" + data[8:200]


if __name__ == "__main__":
    run_command(main)
