r"""Draw feature maps of the last layer of each stage of several networks, for chosen images.

Example:
    python tools/feature_maps.py --starts runs/barlow runs/self_training/round-4 runs/fixmatch \
        --images packs/mine --keys n02085620_7.jpg --out maps.png

A start is anything that `--init` takes: a run, a checkpoint, `timm:resnet50`. Each network has a row of maps.
The printed table states how sparse the maps are. Channels are chosen at random by `--seed`; networks with the
same architecture show the same channels.

Source: Zhou, Wan, Li 2021, figure 1 and section 4.4: ResNet-50 after Barlow Twins, self-training, FixMatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.nets.names import check_start
from engine.train.run_config import DEFAULT_LOADER, LoaderField
from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show the feature maps of networks for images."""

    starts: tuple[Path, ...]
    """Networks, in the order of the rows: runs, checkpoints or other weights, as --init takes them."""
    images: str
    """Pack; or a folder, tar, list or other source, which is packed into a temporary folder first."""
    out: Path
    """PNG file to write; a version for dark pages is written beside it."""
    keys: tuple[str, ...] = ()
    """Images to show: names of files, with as much of the path as makes them unique; the first ones by
    default."""
    split: str = ""
    """Split of the pack that has the images; the whole pack by default."""
    num_images: Count = 1
    """Images to show if --keys names none."""
    num_maps: Count = 16
    """Channels of each stage to show."""
    resolution: int | None = None
    """Side of the views in pixels; by default that of each network's training."""
    backbone: str | None = None
    """Name of the network, for a weights file that does not state it."""
    seed: int = 0
    """Seed of the choice of channels."""
    loader: LoaderField = DEFAULT_LOADER
    """Options of the loader."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, no network, and an --out that is no PNG file or cannot be written."""
        check_numbers(self)
        if not self.starts:
            raise UserError("starts: expected one network or more, found none")
        if self.out.suffix.lower() != ".png":
            raise UserError(f"out: expected a name that ends with .png, found {self.out}; change it")
        check_file(self.out)

    def check_places(self) -> None:
        """Refuse a missing network, before anything is loaded."""
        for start in self.starts:
            check_start(start, "starts", self.backbone if start.is_file() else None)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.report.feature_maps import draw_maps, look, sparseness_table
from engine.report.figures import save_picture
from engine.report.names import names_of
from loaders import open_pack
from loaders.common.tables import print_table
from loaders.packs import Pack
from loaders.packs.labels.file_names import RowNames
from loaders.packs.pack import is_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


def open_images(config: Config, folder: Path) -> Pack:
    """Open the pack; another source is packed into the folder first."""
    if is_pack(config.images, config.loader.store):
        return open_pack(config.images, config.loader.store)
    pack_dataset(PackOptions(parse_splits([f"images={config.images}"]), folder / "pack"))
    return open_pack(folder / "pack")


def chosen_rows(config: Config, pack: Pack) -> list[int]:
    """Return the rows of the images to show, without duplicates.

    Raises:
        UserError: a name fits no image, or more than one.
    """
    split = pack.split(config.split) if config.split else pack.pool(pack.splits)
    if config.keys:
        names = RowNames(pack, split.row_ranges)
        remedy = f"give one that it has, such as {names.name()}"
        return list(dict.fromkeys(names.find(key, "keys", remedy) for key in config.keys))
    return [int(row) for row in split.rows(np.arange(min(config.num_images, len(split))))]


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    with TemporaryDirectory() as folder:
        pack = open_images(config, Path(folder))
        rows = chosen_rows(config, pack)
        options = {"backbone": config.backbone, "resolution": config.resolution, "loader": config.loader}
        named = zip(names_of(config.starts), config.starts, strict=True)
        seen = [look(name, start, pack, rows, **options) for name, start in named]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(config.out, draw_maps(seen, config.num_maps, config.seed))
    found = sparseness_table(seen)
    table = Table(*found.columns, title=found.caption)
    for row in found.rows:
        table.add_row(*row)
    print_table(Console(), table)
    print(f"feature_maps: {len(seen)} networks, {len(rows)} images -> {config.out}")


if __name__ == "__main__":
    run_command(main)
