"""Draw many small, varied JPEG files in class folders, some of them damaged, for tests of packing.

Example:
    python tools/draw_images.py --out images96 --num-images 512000
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count, check_numbers, check_whole
from loaders.common.errors import run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from tools.packing.names import MAX_SIDE


@dataclass(frozen=True)
class Config:
    """Draw JPEG files; every hundredth file is damaged in one of ten ways that a packer must notice."""

    out: Path
    """Folder to make; it must not exist."""
    num_images: Count = 512_000
    """Files to draw."""
    num_classes: Count = 100
    """Number of class folders."""
    resolution: Count = 96
    """Mean side of the images in pixels; sides vary by up to a quarter of it, but are at most 256."""
    seed: int = 0
    """Seed of all images."""
    damaged: bool = True
    """Damage every hundredth file."""
    workers: int = 0
    """Number of threads, 0 for one per core; the files are the same for any number."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a folder that cannot be made."""
        check_numbers(self)
        check_whole("resolution", self.resolution, 16, MAX_SIDE, "the textures have no more pixels")
        check_folder(self.out)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np

from loaders.common.cores import available_cores
from loaders.common.errors import UserError
from tools.packing.synthetic import NUM_TEXTURES, Pictures, Textures, draw_jpegs

_PER_TASK = 2000
_PER_CALL = 100
_DAMAGED_EVERY = 100
NUM_DAMAGES = 10


def main() -> None:
    """Parse the command line and draw."""
    config = command_line(Config, __doc__)
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
        raise UserError(f"{config.out} exists: give a folder that does not exist")
    for label in range(config.num_classes):
        (config.out / f"class{label:04d}").mkdir(parents=True)
    textures = Textures(config.seed)
    with ThreadPoolExecutor(config.workers or available_cores()) as pool:
        firsts = range(0, config.num_images, _PER_TASK)
        for _ in pool.map(lambda first: _draw_some(config, textures, first), firsts):
            pass


def _draw_some(config: Config, textures: Textures, first: int) -> None:
    """Draw the files of one task."""
    count = min(_PER_TASK, config.num_images - first)
    pictures = _choose(config, first, count)
    # Write class by class: with files alternating between a hundred folders, the file system's journal takes
    # twice as long.
    turned = first + first // _PER_TASK * (config.num_classes // 2)
    in_order = np.argsort((turned + np.arange(count)) % config.num_classes, kind="stable")
    folders = [f"{config.out}/class{label:04d}" for label in range(config.num_classes)]
    for start in range(0, count, _PER_CALL):
        numbers = in_order[start : start + _PER_CALL]
        for number, jpeg in zip(
            (first + numbers).tolist(), draw_jpegs(textures, pictures, numbers), strict=True
        ):
            data: bytes | memoryview = jpeg
            if config.damaged and number % _DAMAGED_EVERY == _DAMAGED_EVERY - 1:
                data = damage(bytes(jpeg), number // _DAMAGED_EVERY % NUM_DAMAGES)
            _write(f"{folders[number % config.num_classes]}/{number:09d}.jpg", data)


def _choose(config: Config, first: int, count: int) -> Pictures:
    """Return the pictures of `count` files, beginning with file number `first`."""
    rng = np.random.default_rng([config.seed, 2, first])
    low, high = config.resolution * 3 // 4, config.resolution * 5 // 4
    return Pictures(
        sides=np.minimum(rng.integers(low, high + 1, (count, 2)), MAX_SIDE),
        kinds=rng.integers(0, NUM_TEXTURES, (count, 2)),
        places=rng.random((count, 4)),
        shares=rng.integers(0, 257, count),
        qualities=rng.integers(70, 96, count),
    )


def _write(path: str, data: bytes | memoryview) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def damage(data: bytes, way: int) -> bytes:
    """Return a damaged copy of a baseline JPEG; `way`, 0 to 9, chooses the damage."""
    frame = data.index(b"\xff\xc0")
    table = data.index(b"\xff\xc4")
    match way:
        case 0:
            return b""
        case 1:
            return data[: len(data) // 2]
        case 2:
            return data[:-2]  # only the end marker is missing
        case 3:
            return data[:100]  # ends inside the header
        case 4:
            return b"404 Not Found\n"
        case 5:
            return b"<!doctype html><title>Sign in</title>" + bytes(500)
        case 6:
            return (
                data[: table + 5] + bytes(b ^ 0x5A for b in data[table + 5 : table + 21]) + data[table + 21 :]
            )
        case 7:
            return data[: frame + 5] + b"\0\0" + data[frame + 7 :]  # a height of 0
        case 8:
            return data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :]  # a decompression bomb
        case _:
            return b"\x89PNG\r\n\x1a\n" + data[8:200]


if __name__ == "__main__":
    run_command(main)
