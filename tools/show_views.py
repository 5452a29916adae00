"""Draw a contact sheet of a pack's views: ours, torchvision's for the same drawn numbers, and the difference.

Example:
    python tools/show_views.py packs/mine --view barlow_a --resolution 96 --out views.png
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine.train.run_config import PackConfig
from loaders.common.checks import Count, Positive, check_numbers, check_whole
from loaders.common.errors import run_command
from loaders.common.files import check_file
from loaders.common.program import Positional, check_command_line, command_line
from loaders.options import BackendName

_TILE, _LARGEST_TILE, _MOST_TILE = 192, 256, 1024


@dataclass(frozen=True)
class Config(PackConfig):
    """Draw the views of a preset or of a policy of your own."""

    pack: Positional[Path]
    """Folder of the pack."""
    view: str = "barlow_a"
    """Preset of loaders.views.presets, or rotation_0 to rotation_270, or tile_0 to tile_8; or a ViewPolicy of
    your own as module:name."""
    resolution: Count = 96
    """Side of a preset's view in pixels."""
    split: str | None = None
    """Split to take images from; the first one by default."""
    num_images: Count = 6
    """Number of images shown, one per row of the sheet."""
    draws: Count = 2
    """Views drawn of each image."""
    gain: Positive = 32.0
    """Factor by which the difference is amplified."""
    backend: BackendName = "cpu"
    """Backend that renders our views."""
    seed: int = 0
    """Seed of the choice of images and of the views."""
    tile: int = 0
    """Side of a tile in pixels; 0 takes a whole multiple of the view's resolution near 192, at most 256."""
    out: Path = Path("views.png")
    """PNG file to write."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a file that cannot be written."""
        check_numbers(self)
        if self.tile:
            check_whole("tile", self.tile, 16, _MOST_TILE)
        check_file(self.out)


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.report.sheets import png_bytes
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.errors import UserError, brief
from loaders.common.files import write_atomic
from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg
from loaders.kernels.views import codes
from loaders.packs import Pack, Split
from loaders.views import presets
from loaders.views.draw import ViewParameters, draw
from loaders.views.policy import ViewPolicy
from tools.command.first_training import say_training
from tools.views.oracle import torchvision_view
from tools.views.sheet import draw_sheet


def _rotation(turns: int, resolution: int) -> ViewPolicy:
    return presets.rotations(resolution)[turns]


def _tile(number: int, resolution: int) -> ViewPolicy:
    return presets.tiles(resolution, cell=round(resolution * 75 / 64))[number]


_PRESETS: dict[str, Callable[[int], ViewPolicy]] = {
    "barlow_a": presets.barlow_a,
    "barlow_b": presets.barlow_b,
    "crop_flip": presets.crop_flip,
    "weak": presets.weak,
    "fixmatch_strong": presets.fixmatch_strong,
    "fixmatch_strong_gentle": presets.fixmatch_strong_gentle,
    "simclr": presets.simclr,
    "rotate_translate_jitter": presets.rotate_translate_jitter,
    "reconstruction": presets.reconstruction,
    "evaluation": presets.evaluation,
    "mirrored": presets.mirrored,
    **{f"rotation_{90 * turns}": partial(_rotation, turns) for turns in range(4)},
    **{f"tile_{number}": partial(_tile, number) for number in range(9)},
}
_NAMES = {
    getattr(codes, name): name.lower() for name in dir(codes) if name.isupper() and "ARGUMENTS" not in name
}
_PLAIN_LOADER_VIEW = 256  # view number that a plain loader gives to its first view for the random numbers
_TEXT = {codes.BLUR: "blur sigma {:.2f}", codes.SOLARIZE: "solarize at {:.0f}", codes.HUE: "hue {:+.2f}",
         codes.POSTERIZE: "posterize to {:.0f} bits"}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Our views and torchvision's views of some images.

    Attributes:
        originals: the images, float [3, H, W] in [0, 1] each.
        ours: our views, float [N, D, 3, R, R] in [0, 1], D draws of each image.
        notes: [N][D], what was drawn, in words.
    """

    originals: list[Tensor]
    ours: Tensor
    theirs: Tensor
    notes: list[list[str]]


def compare(
    split: Split, policy: ViewPolicy, num_images: int, draws: int, seed: int, backend: BackendName
) -> Comparison:
    """Render randomly chosen images with a backend and, from the same drawn numbers, with torchvision.

    Args:
        policy: policy of the view; its normalisation is left out.
        num_images: N, at most the number of images in the split.
        draws: D; each draw is an epoch.
        seed: seed of the choice of images and of the views.
    """
    policy = replace(policy, normalize=None)
    rng = np.random.default_rng(seed)
    chosen = split.take(np.sort(rng.choice(len(split), num_images, replace=False)))
    rows = chosen.rows(np.arange(num_images))
    columns = split.pack.columns
    images = [decode(split.pack, int(row)) for row in rows]
    ours, theirs, notes = [], [], []
    loader = build_loader(
        chosen,
        (policy,),
        num_images,
        options=LoaderOptions(seed=seed, backend=backend, bad_images="raise", prefetch=0),
    )
    with loader:
        for epoch in range(draws):
            batch = next(iter(loader.epoch(epoch)))
            ours.append(batch.views[0][batch.index.argsort()].float())
            drawn = draw(
                policy, seed, np.full(num_images, epoch), rows, _PLAIN_LOADER_VIEW,
                columns.height[rows].astype(np.int64), columns.width[rows].astype(np.int64),
            )  # fmt: skip
            reference = [torchvision_view(image, policy, drawn, i) for i, image in enumerate(images)]
            theirs.append(torch.stack(reference))
            notes.append([describe(drawn, i) for i in range(num_images)])
    originals = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in images]
    by_image = [list(column) for column in zip(*notes, strict=True)]
    return Comparison(originals, torch.stack(ours, 1), torch.stack(theirs, 1), by_image)


def decode(pack: Pack, row: int) -> NDArray[np.uint8]:
    """Return the pixels of a row, uint8 [H, W, 3].

    Raises:
        UserError: the image was damaged after packing.
    """
    data, columns = pack.view(row), pack.columns
    try:
        if columns.encoding[row] == ENCODING_RAW:
            return data.reshape(int(columns.height[row]), int(columns.width[row]), 3).copy()
        return decode_jpeg(data)
    except ValueError as error:
        raise UserError(
            f"image: expected a readable image, found {pack.key(row)} damaged ({brief(error)}); see "
            f"tools/verify_pack.py {pack.path}"
        ) from None


def find_policy(name: str, resolution: int) -> ViewPolicy:
    """Return the preset with this name, or the policy that `module:name` refers to.

    Raises:
        UserError: there is no such preset or policy.
    """
    if name in _PRESETS:
        return replace(_PRESETS[name](resolution), shares_draws_of=0)
    if ":" not in name:
        raise UserError(f"--view: expected module:name or one of {', '.join(_PRESETS)}, found {name!r}")
    sys.path.append(os.getcwd())
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--view {name}: expected a module and a name in it, found none ({error})") from None
    if not isinstance(found, ViewPolicy):
        raise UserError(f"--view {name}: expected a ViewPolicy, found {type(found).__name__}; name another")
    return replace(found, shares_draws_of=0)


def describe(drawn: ViewParameters, i: int) -> str:
    """Describe in words what was drawn for image i of a batch."""
    _, _, height, width = drawn.box[i]
    words = [f"crop {width:.0f} x {height:.0f}"]
    if drawn.flip[i]:
        words.append("flip")
    if drawn.shift[i].any():
        words.append(f"shift {drawn.shift[i, 1]:+d} {drawn.shift[i, 0]:+d}")
    for slot, code in enumerate(drawn.codes[i].tolist()):
        if code in (codes.BRIGHTNESS, codes.CONTRAST, codes.SATURATION, codes.SHARPNESS, *_TEXT):
            words.append(_TEXT.get(code, _NAMES[code] + " {:.2f}").format(drawn.args[i, slot]))
        elif code != codes.NONE:
            words.append(_NAMES[code])
    return ", ".join(words)


def make_sheet(comparison: Comparison, config: Config) -> Image.Image:
    """Draw the sheet of a comparison."""
    difference = (comparison.ours - comparison.theirs).abs() * 255
    summary = (
        f"{config.backend} backend against torchvision v2 on the same drawn numbers, in steps of 1/255: mean "
        f"{difference.mean():.3f}, 99.9 % within {np.quantile(difference.numpy(), 0.999):.2f}, largest "
        f"{difference.max():.1f}"
    )
    headings = ["image"]
    for number in range(config.draws):
        headings += [f"ours, draw {number + 1}", "torchvision", f"difference x {config.gain:g}"]
    rows = []
    for i, original in enumerate(comparison.originals):
        pictures = [original]
        for ours, theirs in zip(comparison.ours[i], comparison.theirs[i], strict=True):
            pictures += [ours, theirs, ((ours - theirs).abs() * config.gain).clamp(0, 1)]
        size = f"{original.shape[2]} x {original.shape[1]}"
        rows.append((pictures, [size, *comparison.notes[i]]))
    resolution = comparison.ours.shape[-1]
    title = f"{config.view} at {resolution} pixels"
    side = resolution * max(1, round(_TILE / resolution))
    return draw_sheet(title, summary, headings, rows, config.tile or min(side, _LARGEST_TILE), 3)


def main() -> int:
    """Parse the command line, render, draw and write the sheet."""
    config = command_line(Config, __doc__)
    if not config.out.parent.is_dir():
        raise UserError(f"--out: expected a folder {config.out.parent} to write to, found none; make it")
    pack = open_pack(config.pack)
    split = pack.split(config.split or pack.splits[0])
    policy = find_policy(config.view, config.resolution)
    number = min(config.num_images, len(split))
    comparison = compare(split, policy, number, config.draws, config.seed, config.backend)
    write_atomic(config.out, png_bytes(make_sheet(comparison, config), optimize=True))
    print(f"{number} images, {config.draws} draws each -> {config.out}", file=sys.stderr)
    say_training(pack, config.pack)
    return 0


if __name__ == "__main__":
    run_command(main)
