"""The benchmark of shrinking photographs: the options that it refuses."""

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
