"""The benchmark of shrinking photographs: the files that it takes, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.common.errors import UserError
from tools.bench_transcode import Config, _read


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = simplejpeg.encode_jpeg(np.zeros((32, 48, 3), np.uint8))
    (tmp_path / "a.jpg").write_bytes(whole)
    (photograph,) = _read(Config(images=tmp_path, short_side=16))
    assert (photograph.height, photograph.width, photograph.to_height, photograph.to_width) == (
        32,
        48,
        16,
        24,
    )
    for damaged in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "b.jpg").write_bytes(damaged)
        with pytest.raises(UserError, match=r"found .*b\.jpg"):
            _read(Config(images=tmp_path, short_side=16))


def test_no_more_files_are_used_than_asked_for(tmp_path: Path) -> None:
    for height in range(32, 39):
        image = np.zeros((height, 48, 3), np.uint8)
        (tmp_path / f"{height}.jpg").write_bytes(simplejpeg.encode_jpeg(image))
    heights = {
        n: [p.height for p in _read(Config(images=tmp_path, num_images=n, short_side=16))] for n in (1, 4, 9)
    }
    assert heights == {1: [32], 4: [32, 34, 36, 38], 9: list(range(32, 39))}
