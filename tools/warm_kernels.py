"""Compile the kernels that demo, tests and recipes use, so that no first batch waits for the compiler.

Example:
    python tools/warm_kernels.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config:
    """Compile the kernels of packing, of the order, and of views in each dtype."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import simplejpeg

from loaders import LoaderOptions, open_pack
from loaders.build import build_loader
from loaders.packs.bulk import load_kernels
from loaders.packs.images.planes import shrink_planes
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import RandomErasing

_SIDE = 32
_VIEWS = (
    presets.barlow_a(_SIDE),
    presets.weak(_SIDE),
    presets.fixmatch_strong(_SIDE),
    presets.simclr(_SIDE),
    presets.rotate_translate_jitter(_SIDE),
    presets.reconstruction(_SIDE),
    presets.evaluation(_SIDE),
    presets.mirrored(_SIDE),
    EvaluationView(_SIDE, 0.875, whole_pixels=True).policy(),
    *presets.rotations(_SIDE),
    *presets.tiles(_SIDE),
    replace(presets.weak(_SIDE), operations=(RandomErasing(),)),
)


def warm() -> None:
    """Call each kernel with the types that are used most, which compiles it."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((_SIDE, _SIDE, 3), np.uint8), colorsubsampling="420")
    load_kernels()
    shrink_planes(jpeg, 1, _SIDE // 2, _SIDE // 2, 90)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        (folder / "images" / "one.jpg").write_bytes(jpeg)
        pack_dataset(PackOptions(parse_splits([f"all={folder / 'images'}"]), folder / "pack", workers=1))
        split, options = open_pack(folder / "pack").split("all"), LoaderOptions(backend="cpu", num_threads=1)
        with build_loader(split, _VIEWS, 1, options=options) as loader:
            next(iter(loader))
        for dtype in ("float16", "bfloat16"):
            build_loader(split, _VIEWS[:1], 1, options=replace(options, dtype=dtype)).close()
        crop = presets.crop_flip(_SIDE, normalize=None)
        build_loader(split, (crop,), 1, options=replace(options, dtype="uint8")).close()


def main() -> None:
    """Compile the kernels."""
    command_line(Config, __doc__)
    warm()


if __name__ == "__main__":
    run_command(main)
