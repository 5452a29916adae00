"""Outliers of a pack: mean gray values of evenly spaced images, and the limits for outliers."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.loaders.packs.inputs import encoded, pack, write_tree
from tools.packing.outliers import brightness, fences


def test_fences_are_tukeys() -> None:
    assert fences(np.array([10.0, 11, 12, 13, 200])) == (8.0, 16.0)
    assert fences(np.array([10.0, 11, np.nan, 12, 13, 200])) == (8.0, 16.0)


def test_gray_values_of_every_encoding(tmp_path: Path) -> None:
    grays = (3, 120, 251)
    files = {f"{v}.png": encoded(Image.new("RGB", (40, 30), (v, v, v)), "PNG") for v in grays}
    write_tree(tmp_path / "in", files)
    for encoding in ("jpeg", "raw"):
        packed = pack(tmp_path / encoding, f"all={tmp_path / 'in'}", encoding=encoding)
        rows, values = brightness(packed, 2)
        by_key = {packed.key(int(row)): value for row, value in zip(rows, values, strict=True)}
        for gray in grays:
            assert abs(by_key[f"all/{gray}"] - gray) < 1.5
