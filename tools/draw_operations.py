"""Draw every geometry and operation of views on one photograph, as shown in docs/views.md.

Example:
    python tools/draw_operations.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from loaders.common.checks import Count, check_numbers
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "views"


@dataclass(frozen=True)
class Config:
    """Draw each operation a few times on scikit-learn's photograph of a flower."""

    out: Path = FOLDER
    """Folder for the pictures."""
    tile: Count = 64
    """Side of a view in pixels."""
    draws: Count = 4
    """Views of each operation."""
    seed: int = 3
    """Seed of the views."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_image

from engine.report.sheets import png_bytes
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.files import write_atomic
from loaders.packs import Pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views import presets
from loaders.views.geometry import (
    CenterCrop,
    Geometry,
    PaddedCrop,
    RandomResizedCrop,
    ResizedCenterCrop,
    Tile,
)
from loaders.views.policy import (
    Augment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    QuarterTurn,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
    ViewPolicy,
)

_GAP, _COLOURS = 4, 40
_WHOLE = CenterCrop(1.0)
_STRONG = next(found for found in presets.fixmatch_strong().operations if isinstance(found, RandAugment))
_INVERT = (Augment("invert"),)  # no preset has this augmentation
SHOWN: dict[str, tuple[Geometry, tuple[Operation, ...]]] = {
    "RandomResizedCrop": (RandomResizedCrop(), ()),
    "CenterCrop": (CenterCrop(), ()),
    "ResizedCenterCrop": (ResizedCenterCrop(110), ()),
    "PaddedCrop": (PaddedCrop(), ()),
    "Tile": (Tile(1, 1), ()),
    "HorizontalFlip": (_WHOLE, (HorizontalFlip(),)),
    "ColorJitter": (_WHOLE, (ColorJitter(0.4, 0.4, 0.2, 0.1),)),
    "Grayscale": (_WHOLE, (Grayscale(0.5),)),
    "GaussianBlur": (_WHOLE, (GaussianBlur(1.0),)),
    "Solarize": (_WHOLE, (Solarize(0.5),)),
    "RandomAffine": (_WHOLE, (RandomAffine(degrees=30, translate=0.1),)),
    "RandAugment": (_WHOLE, (_STRONG,)),
    "Cutout": (_WHOLE, (Cutout(),)),
    "RandomErasing": (_WHOLE, (RandomErasing(p=1.0, fill="noise"),)),
    "QuarterTurn": (_WHOLE, (QuarterTurn(1),)),
    **{
        f"Augment-{one.name}": (_WHOLE, (RandAugment((one,), num_ops=1, p=1.0),))
        for one in _STRONG.augments + _INVERT
    },
}
"""Pictures by name, each with the geometry and the operations that it shows."""


def draw(config: Config, pack: Pack, name: str) -> bytes:
    """Return a PNG file: a row of views of the pack's only image, drawn in epochs 0, 1, ..."""
    geometry, operations = SHOWN[name]
    view = ViewPolicy(name, config.tile, geometry, operations)
    options = LoaderOptions(seed=config.seed, num_threads=1, dtype="uint8")
    with build_loader(pack.split("shown"), (view,), 1, options=options) as loader:
        tiles = [
            next(loader.epoch(epoch)).views[0][0].permute(1, 2, 0).numpy() for epoch in range(config.draws)
        ]
    width = config.draws * (config.tile + _GAP) - _GAP
    row = np.full((config.tile, width, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        left = place * (config.tile + _GAP)
        row[:, left : left + config.tile] = tile
    return png_bytes(Image.fromarray(row).quantize(_COLOURS, dither=Image.Dither.NONE), optimize=True)


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "in").mkdir()
        flower = np.ascontiguousarray(load_sample_image("flower.jpg")[20:400, 130:510])
        (folder / "in" / "flower.jpg").write_bytes(simplejpeg.encode_jpeg(flower, 95))
        splits = parse_splits([f"shown={folder / 'in'}"])
        pack_dataset(PackOptions(splits, folder / "pack", workers=1))
        pack, size = open_pack(folder / "pack"), 0
        for name in SHOWN:
            picture = draw(config, pack, name)
            write_atomic(config.out / f"{name}.png", picture)
            size += len(picture)
    print(f"views: {len(SHOWN)} pictures, {size / 1e3:.0f} kB -> {config.out}")


if __name__ == "__main__":
    run_command(main)
