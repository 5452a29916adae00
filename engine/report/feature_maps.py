"""Drawings of feature maps: of one run for its page, and of several networks side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.device import device_of_process
from engine.evaluate.feature_maps import StageMaps, stage_maps
from engine.nets.starts import find_start
from engine.report.figures import draw_picture
from engine.report.names import drawn_names
from engine.report.page import Gallery, Picture, Section, Table
from engine.report.sheets import png, to_pixels
from engine.report.theme import Palette
from loaders.classification import build_rows_loader
from loaders.options import LoaderOptions
from loaders.packs import Pack

_SHOWN_IMAGES, _SHOWN_MAPS = 4, 9
_COLOURS = "viridis"  # zero is dark, on light and on dark pages
_GAP, _LEAST_SIDE = 1, 20  # pixels between maps, and least side of a map in pixels


@dataclass(frozen=True)
class ImageMaps:
    """The feature maps of a network for some images.

    Attributes:
        name: name of the network.
        images: uint8 [N, 3, H, W], the views that the network saw.
        stages: maps of each stage, from the first to the last.
    """

    name: str
    images: Tensor
    stages: tuple[StageMaps, ...]


def look(name: str, start: Path, pack: Pack, rows: Sequence[int], **options: Any) -> ImageMaps:
    """Compute the feature maps of a network for images of a pack.

    Args:
        name: name to show for the network.
        start: the network, as `--init` takes it.
        pack: pack that holds the images.
        rows: rows of the pack, without repetition.
        options: `backbone`, name of the network, for a weights file that does not state it; `resolution`, by
            default that of its training; `loader`, LoaderOptions, by default those of one thread.

    Raises:
        UserError: there is no such start, or its network does not name its stages.
    """
    found = find_start(start, options.get("backbone")).at(options.get("resolution"))
    device = device_of_process()
    order = np.sort(np.array(rows, np.int64))
    given = options.get("loader", LoaderOptions())
    loading = replace(given, num_threads=given.num_threads or 1, device=device, channels_last=True)
    with build_rows_loader(pack, order, found.view, loading, batch_size=len(order)) as loader:
        (batch,) = loader.epoch(0)
    views = batch.views[0][torch.from_numpy(np.searchsorted(order, np.array(rows)))]
    stages = stage_maps(found.load().to(device), views)
    return ImageMaps(name, to_pixels(views, found.view.mean, found.view.std), tuple(stages))


def some_channels(num_channels: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return up to `count` random channels, increasing; they depend only on the arguments."""
    count = min(count, num_channels)
    drawn = np.random.default_rng(seed).choice(num_channels, count, replace=False)
    return np.sort(drawn).astype(np.int64)


def montage(maps: Tensor, channels: NDArray[np.int64]) -> Tensor:
    """Arrange maps of one image in a square grid.

    Args:
        maps: float32 [C, H, W].
        channels: int64 [K], channels to show; each map is divided by its own largest magnitude.

    Returns:
        uint8 [3, H', W']; small maps are enlarged, so that they are much larger than the gaps between them.
    """
    from matplotlib import colormaps

    chosen = maps[torch.from_numpy(channels)].abs()
    chosen = chosen / chosen.amax((1, 2), keepdim=True).clamp_min(1e-30)
    times = -(-_LEAST_SIDE // min(chosen.shape[1:]))
    chosen = chosen.repeat_interleave(times, 1).repeat_interleave(times, 2)
    across = int(np.ceil(np.sqrt(len(chosen))))
    height, width = chosen.shape[1] + _GAP, chosen.shape[2] + _GAP
    down = -(-len(chosen) // across)
    grid = np.full((down * height - _GAP, across * width - _GAP, 3), 255, np.uint8)
    for place, values in enumerate(chosen.numpy()):
        top, left = place // across * height, place % across * width
        shown = colormaps[_COLOURS](values, bytes=True)[..., :3]
        grid[top : top + values.shape[0], left : left + values.shape[1]] = shown
    return torch.from_numpy(grid).permute(2, 0, 1)


def maps_section(run: Path, pack: Pack, rows: Iterable[int], seed: int = 0) -> Section:
    """Return some maps of each stage of a run's network, for a few images.

    Raises:
        UserError: see `look`.
    """
    shown = list(islice(dict.fromkeys(rows), _SHOWN_IMAGES))
    seen = look(run.name, run, pack, shown)
    columns = []
    for number, image in enumerate(seen.images):
        column = [png(image)]
        for stage in seen.stages:
            channels = some_channels(stage.maps.shape[1], _SHOWN_MAPS, seed)
            column.append(png(montage(stage.maps[number], channels)))
        columns.append(column)
    names = ("image", *(stage.stage for stage in seen.stages))
    caption = (
        f"Up to {_SHOWN_MAPS} channels of the last layer of each stage, drawn at random; dark is zero, each "
        "map by its own largest value. tools/feature_maps.py sets several networks side by side."
    )
    return Section("Feature maps", [Gallery(names, columns, caption), sparseness_table([seen])])


def sparseness_table(seen: Sequence[ImageMaps]) -> Table:
    """Return a table of the sparseness of maps, with a row per network and stage."""
    rows = [
        (stage.stage, *(() if len(seen) == 1 else (one.name,)), _size(stage), f"{stage.sparseness:.3f}")
        for one in seen
        for stage in one.stages
    ]
    columns = ("stage", *(() if len(seen) == 1 else ("network",)), "channels x side", "sparseness")
    caption = "Sparseness (Hoyer 2004): 0 if all activations are equal, 1 if only one is not zero."
    return Table(columns, rows, caption)


def draw_maps(seen: Sequence[ImageMaps], count: int, seed: int) -> Picture:
    """Draw the maps of several networks: for each image a row per network, a column per stage.

    Args:
        seen: maps of the same images; networks may have different stages.
        count: number of channels to show of each stage.
        seed: seed of the choice of channels.
    """
    names = drawn_names([one.name for one in seen])
    num_images, num_columns = len(seen[0].images), 1 + max(len(one.stages) for one in seen)

    def draw(figure: Any, palette: Palette) -> None:
        grid = figure.subplots(num_images * len(seen), num_columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, (number, (one, name)) in enumerate(
            (number, pair) for number in range(num_images) for pair in zip(seen, names.texts, strict=True)
        ):
            grid[row, 0].imshow(one.images[number].permute(1, 2, 0).numpy())
            grid[row, 0].set_title(name, loc="left", fontsize=8, color=palette.ink)
            for axes, stage in zip(grid[row, 1:], one.stages, strict=False):
                channels = some_channels(stage.maps.shape[1], count, seed)
                pixels = montage(stage.maps[number], channels).permute(1, 2, 0).numpy()
                axes.imshow(pixels, interpolation="nearest")
                title = f"{stage.stage}, sparseness {stage.sparseness:.2f}"
                axes.set_title(title, loc="left", fontsize=7, color=palette.muted)

    size = (1.75 * num_columns, 1.95 * num_images * len(seen))
    alt = f"Feature maps of {', '.join(one.name for one in seen)}"
    return draw_picture(draw, size, alt, "", names)


def _size(stage: StageMaps) -> str:
    return f"{stage.maps.shape[1]} x {stage.maps.shape[-1]}"
