"""Rows of images in one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from engine.report.sheets import png_bytes
from loaders.common.files import write_atomic


def save_rows(path: Path, rows: Sequence[Tensor]) -> None:
    """Write a PNG file with a row of images for each entry of `rows`, atomically.

    Args:
        path: the file to write or replace.
        rows: float [N, 3, H, W] each, in [0, 1], all of one shape.
    """
    joined = [image.detach().float().cpu().clamp(0, 1) for row in rows for image in row]
    grid: Tensor = make_grid(joined, nrow=len(rows[0]), padding=2, pad_value=1.0)
    pixels = (grid * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    write_atomic(path, png_bytes(Image.fromarray(pixels)))
