r"""Predict the classes of images: a table of guesses, a contact sheet, labels for the next round of training.

Example:
    python tools/predict.py --network runs/finetuned --images photos/ --out predicted
    accelerate launch tools/predict.py --network mine.onnx --images packs/mine --split unlabeled --out guesses

`--images` is a pack, or anything that tools/pack_dataset.py packs: a folder, a tar, a list. Anything but a
pack is first packed into OUT/pack, as the split `images`, so that its images are read at the loader's speed.

Results:
    OUT/predictions.csv    file, label, confidence, then the next classes with their confidences
    OUT/labels.parquet     a label table for --extra-labels, if the pack's classes include the network's or
                           the network's include the pack's
    OUT/pack               the pack of --images, unless --images was a pack
    OUT/sheet.png          images with their guesses: the most confident ones of each class in turn

`file` is the path in the folder, tar or zip, or the path in the list. For a table of images it is the key, or
the table's file and row. For a pack it is the key, which is split and path without the suffix: a pack stores
no more.

The next round trains on the guesses:
    python recipes/supervised.py --pack predicted/pack --labeled-split images --test-split "" \
        --extra-labels predicted/labels.parquet --backbone tiny_resnet --resolution 32 --out runs/next
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.nets.names import check_start
from engine.train.run_config import ForwardConfig, on_this_rank
from loaders.common.checks import Count, Share, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from loaders.packs.sources.naming import check_source


@dataclass(frozen=True, kw_only=True)
class Config(ForwardConfig):
    """Write the predictions of a network for images."""

    network: Path
    """Network with a classifier: a run folder, an export (tools/export.py), timm:NAME, hf:REPO or weights."""
    images: str
    """Pack; or a folder, tar, list or other source, which is packed first."""
    out: Path
    """Folder of the results; existing results are replaced."""
    split: str = ""
    """Split of the pack; all images by default."""
    backbone: str | None = None
    """Name of the network, for a weights file that does not state it."""
    top_k: Count = 5
    """Classes listed per image; all classes if there are fewer."""
    threshold: Share = 0.0
    """Smallest confidence of a label in labels.parquet; the table of guesses has all images."""
    form: Literal["csv", "parquet"] = "csv"
    """Format of the table of guesses."""
    sheet: Count | None = 64
    """Images on the contact sheet; None for no sheet."""
    cycle: Count = 1
    """Round of pseudo-labels, recorded as `cycle` in labels.parquet."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a path where no folder can be made."""
        check_numbers(self)
        check_folder(self.out)

    def check_places(self) -> None:
        """Refuse a missing network or classifier, unusable --images, and a run or a pack as --out."""
        check_start(self.network, "network", self.backbone, classifier=True)
        folder, packed = Path(self.images), self.out / "pack" / "manifest.json"
        for name, what in (("config.json", "a run"), ("manifest.json", "a pack")):
            if (self.out / name).is_file():
                raise UserError(
                    f"out: expected a new folder or one of predictions, found {what} at {self.out}; change it"
                )
        if not packed.is_file():
            check_source(self.images)
        if folder.is_dir() and not any(files for _, _, files in os.walk(folder, followlinks=True)):
            raise UserError(f"images: expected images, found no file in {folder}; check the path")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.evaluate.predict import predict
from engine.labels.matching import some_names
from engine.nets.exported import Exported, load_exported
from engine.report.sheets import png_bytes, to_pixels
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import gather_on_main, make_accelerator, on_main, rank
from engine.train.progress import CountProgress
from loaders import build_loader, open_pack
from loaders.common.files import csv_text, write_atomic
from loaders.common.next_step import say_next
from loaders.common.notice import tell
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.audit import compare_with_source
from loaders.packs.labels.class_names import write_class_names
from loaders.packs.listing import listed
from loaders.packs.manifest import QUARANTINE_NAME
from loaders.packs.pack import is_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.image_table import ImageTableSource
from loaders.packs.sources.item import printable
from loaders.packs.sources.spec import SplitSource, parse_splits
from loaders.packs.sources.table_columns import ColumnOptions
from tools.views.sheet import fit_text

_SPLIT = "images"  # name of the split in a pack that is made here


@dataclass(frozen=True)
class Guessed:
    """The predictions of a network for N images.

    Attributes:
        row: int64 [N], rows of the pack, increasing.
        label: int64 [N, K], the network's K most probable classes, most probable first.
        confidence: float32 [N, K], their probabilities.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    confidence: NDArray[np.float32]


def is_own(config: Config, pack: Pack) -> bool:
    """Return whether a pack is the one that this command made of `--images`."""
    return pack.path == (config.out / "pack").absolute()


def open_images(config: Config, classes: tuple[str, ...]) -> Pack:
    """Open the pack; another source is packed first, and again if its images have changed since.

    If the source has no class names, the new pack gets the network's, if there are several.
    """
    if is_pack(config.images, config.loader.store):
        return open_pack(config.images, config.loader.store)
    out = config.out / "pack"
    given = PackOptions(parse_splits([f"{_SPLIT}={config.images}"]), out)

    def pack() -> None:
        is_old = (out / "manifest.json").is_file()
        with CountProgress("packing", 0, 0, rank() == 0) as shown:
            pack_dataset(given, shown.show)  # raises if the existing pack was made of another source
            if is_old and (changes := _changes(open_pack(out), given.splits[0])):
                tell(f"images: packed again, since they have changed after {out} was made: {changes[0]}")
                fresh = replace(given, out=out.with_name("pack-new"))  # if packing fails, the old pack stays
                shutil.rmtree(fresh.out, ignore_errors=True)
                pack_dataset(fresh, shown.show)
                shutil.rmtree(out)
                fresh.out.rename(out)
        if not open_pack(out).classes and len(classes) > 1:
            write_class_names(out, classes)

    on_main(pack)
    return open_pack(out)


def _changes(pack: Pack, source: SplitSource) -> list[str]:
    """Return lines on how a source differs from the pack made of it; none if the source cannot be read."""
    try:
        return compare_with_source(pack, source)
    except (UserError, OSError) as error:
        tell(f"images: taken from {pack.path}, since the source cannot be read again: {error}")
        return []


def guess(config: Config, network: Exported, split: Split) -> Guessed:
    """Predict the classes of every image; each rank takes a part, and rank 0 gets the whole result."""
    options = on_this_rank(config.loader)
    device = torch.device(options.device)
    size, top_k = config.batch_size * options.num_ranks, min(config.top_k, max(1, len(network.classes)))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    shown = CountProgress("predict", len(split), 0, rank() == 0)
    with build_loader(split, (network.view.policy(),), size, options=options, mode="eval") as loader, shown:
        for step, part in enumerate(predict(network.to(device), loader, device, config.out), 1):
            confidence, label = part.probabilities.topk(top_k)
            parts.append((part.index, label, confidence))
            shown.show(min(len(split), step * size), len(split))
    found = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    whole = gather_on_main(found)
    row, labels, shares = (np.concatenate(column) for column in zip(*(whole or [found]), strict=True))
    order = np.argsort(row)
    return Guessed(row[order], labels[order], shares[order])


def file_names(config: Config, pack: Pack, rows: NDArray[np.int64]) -> list[str]:
    """Return the names by which the user knows the images.

    If the images were packed here, these are their names in the source. If the user gave a pack, or if the
    source cannot be listed again, these are the keys.
    """
    keys = [pack.key(row) for row in rows.tolist()]
    if not is_own(config, pack):
        return keys
    try:
        with listed(SplitSource(_SPLIT, config.images), ColumnOptions(), config.out) as (source, items):
            by_key = isinstance(source, ImageTableSource) and source.has_keys
            known = {item.key: unquote(item.key) if by_key else printable(item.name) for item in items}
    except (UserError, OSError) as error:  # do not lose the guesses only because the names are missing
        tell(f"predict: the column file has keys, since the source cannot be listed again: {error}")
        known = {}
    return [known.get(key, key) for key in (key.removeprefix(f"{_SPLIT}/") for key in keys)]


def write_table(config: Config, pack: Pack, classes: Sequence[str], guessed: Guessed) -> Path:
    """Write predictions.csv or predictions.parquet, with a row per image; return its path."""
    names = np.array(classes, dtype=object)
    columns: dict[str, Sequence[object]] = {"file": file_names(config, pack, guessed.row)}
    for place in range(guessed.label.shape[1]):
        ending = "" if place == 0 else f"_{place + 1}"
        columns[f"label{ending}"] = names[guessed.label[:, place]].tolist()
        columns[f"confidence{ending}"] = guessed.confidence[:, place].tolist()
    path = config.out / f"predictions.{config.form}"
    if config.form == "parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pa.table(columns), buffer)
        write_atomic(path, buffer.getvalue())
        return path
    rows = (
        [f"{value:.6f}" if isinstance(value, float) else value for value in line]
        for line in zip(*columns.values(), strict=True)
    )
    write_atomic(path, csv_text(columns, rows).encode())
    return path


def numbers_in_pack(config: Config, pack: Pack, classes: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the pack's number of each class of the network, -1 for a class that the pack lacks.

    If classes are missing in the pack, a line says so. Return None if the network lacks classes of the pack
    too, or if the pack has no classes: no labels are written then.
    """
    number_of = {name: number for number, name in enumerate(pack.classes)}
    lacking = [name for name in classes if name not in number_of]
    unknown = not number_of or not number_of.keys() <= set(classes)
    held = f"the {'folders in' if Path(config.images).is_dir() and is_own(config, pack) else 'classes of'}"
    if lacking:
        what = "no labels.parquet is written" if unknown else f"labels.parquet lacks {some_names(lacking)}"
        tell(
            f"predict: {what}: {held} {config.images} ({some_names(pack.classes) or 'none'}) are not "
            f"the {len(classes)} classes of {config.network}; predictions.{config.form} has all guesses"
        )
    return None if lacking and unknown else np.array([number_of.get(name, -1) for name in classes])


def label_table(config: Config, pack: Pack, numbers: NDArray[np.int64], guessed: Guessed) -> LabelTable:
    """Return the guesses that reach the threshold, of classes that the pack has, as a label table.

    `numbers` has the pack's number of each class of the network, as `numbers_in_pack` returns them.
    """
    label, confidence = numbers[guessed.label[:, 0]], np.minimum(guessed.confidence[:, 0], np.float32(1.0))
    kept = (label >= 0) & (confidence >= config.threshold)
    rows = (guessed.row[kept], label[kept], len(pack.classes), confidence[kept])
    return LabelTable.of(*rows, "pseudo", config.cycle)


def draw_sheet(config: Config, network: Exported, split: Split, guessed: Guessed, count: int) -> None:
    """Draw `count` images with their guesses into sheet.png: the most confident of each class in turn."""
    by_class: dict[int, list[int]] = {}
    for place in np.argsort(-guessed.confidence[:, 0]).tolist():
        by_class.setdefault(int(guessed.label[place, 0]), []).append(place)
    depth = max(map(len, by_class.values()))
    in_turn = (found[turn] for turn in range(depth) for found in by_class.values() if turn < len(found))
    shown = sorted([place for place, _ in zip(in_turn, range(count), strict=False)])
    everything = split.pack.pool(split.pack.splits)
    view, options = network.view, replace(config.loader, device="cpu")
    with build_loader(
        everything.take(guessed.row[shown]), (view.policy(),), len(shown), options=options, mode="eval"
    ) as loader:
        (batch,) = loader.epoch(0)
        pixels = to_pixels(batch.views[0], view.mean, view.std)
    side, margin, across = max(view.resolution, 96), 14, 8
    sheet = Image.new("RGB", (across * side, -(-len(shown) // across) * (side + margin)), "white")
    drawing = ImageDraw.Draw(sheet)
    for number, held in enumerate(np.argsort(-guessed.confidence[shown, 0], kind="stable")):
        place, left, top = shown[held], number % across * side, number // across * (side + margin)
        picture = Image.fromarray(pixels[held].permute(1, 2, 0).contiguous().numpy())
        sheet.paste(picture.resize((side, side)), (left, top))
        name = network.classes[int(guessed.label[place, 0])]
        text = f"{guessed.confidence[place, 0]:.0%} {name}"
        plain = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's own font has
        words, font = fit_text(drawing, plain, side - 2, (10, 9, 8))
        drawing.text((left + 1, top + side + 1), words, fill="black", font=font)
    write_atomic(config.out / "sheet.png", png_bytes(sheet))


def describe(config: Config, pack: Pack, split: Split, num_guessed: int) -> str:
    """Return a line on the number of guesses, the files written, and the inputs that could not be read."""
    refused = pack.manifest.num_quarantined if is_own(config, pack) else 0
    quarantined = f", {refused:,} inputs quarantined, reasons in {pack.path / QUARANTINE_NAME}"
    sheet = "" if config.sheet is None else ", pictures with their guesses in sheet.png beside it"
    return (
        f"predict: {num_guessed:,} of {len(split):,} images -> {config.out}/predictions.{config.form}{sheet}"
        f"{quarantined if refused else ''}{describe_bad_rows(config.out)}"
    )


def run(config: Config) -> Path:
    """Predict and write everything; return the path of the table of guesses."""
    make_accelerator("no", device=config.device)
    network = load_exported(config.network, config.backbone)
    if not network.classes:
        raise UserError(f"network: expected a classifier with named classes, found none in {config.network}")
    pack = open_images(config, network.classes)
    split = pack.split(config.split) if config.split else pack.pool(pack.splits)
    on_main(lambda: config.out.mkdir(parents=True, exist_ok=True))  # all checks have passed by now
    on_main(lambda: forget_bad_rows(config.out))
    numbers = numbers_in_pack(config, pack, network.classes)  # before the work: it may print a notice
    guessed = guess(config, network, split)

    def write() -> Path:
        for name in ("labels.parquet", "sheet.png"):  # left by an earlier run; this run may write none
            (config.out / name).unlink(missing_ok=True)
        path = write_table(config, pack, network.classes, guessed)
        if numbers is not None:
            pack.signed(label_table(config, pack, numbers, guessed)).write(config.out / "labels.parquet")
        if config.sheet is not None:
            draw_sheet(config, network, split, guessed, config.sheet)
        print(describe(config, pack, split, len(guessed.row)))
        return path

    return on_main(write)


def main() -> None:
    """Parse the command line, run the command, and suggest the next one for a run."""
    config = command_line(Config, __doc__)
    run(config)
    if (Path(config.network) / "metrics.jsonl").is_file():  # in a run, not in an export
        say_next("tools/export.py", "--run", config.network, "--form", "onnx", "--out", "network.onnx")


if __name__ == "__main__":
    run_command(main)
