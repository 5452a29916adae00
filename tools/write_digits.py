"""Write scikit-learn's handwritten digits as JPEG files in class folders.

Example:
    python tools/write_digits.py --out build/digits
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Write 1,797 real images: `OUT/train/<digit>/NNNN.jpg` and `OUT/test/<digit>/NNNN.jpg`."""

    out: Path
    """Folder to write to; it must not exist yet."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import simplejpeg
from PIL import Image

from loaders.common.errors import UserError
from loaders.common.next_step import say_next

RESOLUTION = 32
QUALITY = 95
_TOP_VALUE = 16  # largest value of a pixel, which counts the black dots in a 4x4 block
_TEST_EVERY = 4


def write_digits(out: Path) -> dict[str, int]:
    """Write the digits as 32x32 RGB JPEG files of quality 95; every fourth image of a class goes to `test`.

    Returns:
        Number of images per split.

    Raises:
        UserError: `out` exists.
    """
    from sklearn.datasets import load_digits

    if out.exists():
        raise UserError(f"{out} exists: choose a folder that does not exist yet, or remove it")
    images, targets = load_digits(return_X_y=True)
    counts = {"train": 0, "test": 0}
    seen = [0] * 10
    for number, (pixels, digit) in enumerate(zip(images.reshape(-1, 8, 8), targets.tolist(), strict=True)):
        split = "test" if seen[digit] % _TEST_EVERY == _TEST_EVERY - 1 else "train"
        seen[digit] += 1
        counts[split] += 1
        folder = out / split / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.jpg").write_bytes(_encode(pixels))
    return counts


def _encode(pixels: np.ndarray) -> bytes:
    """Enlarge a digit, float [8, 8] in [0, 16], to 32x32 pixels and encode it as RGB JPEG."""
    gray = Image.fromarray(np.round(pixels * (255 / _TOP_VALUE)).astype(np.uint8))
    large = np.asarray(gray.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC))
    rgb = np.repeat(large[:, :, None], 3, axis=2)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), QUALITY, "rgb", "444"))


def main() -> None:
    """Parse the command line and write the digits."""
    config = command_line(Config, __doc__)
    counts = write_digits(config.out)
    print(f"{counts['train']:,} training and {counts['test']:,} test images -> {config.out}")
    splits = [f"{name}={config.out / name}" for name in counts]
    say_next("tools/pack_dataset.py", "--splits", *splits, "--out", "packs/digits")


if __name__ == "__main__":
    run_command(main)
