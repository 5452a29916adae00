r"""Find near copies in a pack by the features of a network: pairs whose features are almost the same.

Example:
    python tools/near_copies.py --pack packs/mine --init weights/lite0 --out runs/copies

OUT/near_copies.csv lists the pairs, the most similar first, with the splits of both images. A pair with one
image in a training split and the other in a test split is a leak. The features are kept in OUT/features.
`tools/inspect_pack.py --near` compares small grey pictures instead and needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.train.run_config import FrozenConfig
from loaders.common.checks import Positive, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Write the pairs of images with almost the same features."""

    init: Path
    """Start: run folder, checkpoint, timm:NAME, hf:REPO or weights file, see docs/pretrained.md."""
    out: Path
    """Folder of the results and of the features."""
    splits: tuple[str, ...] = ()
    """Splits to compare, within and across splits; all by default."""
    threshold: Positive = 0.95
    """Smallest cosine similarity of a pair."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a path where no folder can be made."""
        check_numbers(self)
        check_folder(self.out)
        if self.threshold > 1.0:
            raise UserError(f"threshold: expected a cosine, at most 1, found {self.threshold}; lower it")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import sys

from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.evaluate.near_copies import NearPairs, near_pairs
from engine.nets.starts import find_start
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import make_accelerator, on_main, rank
from loaders import open_pack
from loaders.common.files import csv_text, write_atomic
from loaders.common.next_step import say_next
from tools.frozen import frozen_features


def run(config: Config) -> NearPairs:
    """Compute the features on all ranks; compare them and write the pairs on rank 0."""
    pack = open_pack(config.pack, config.loader.store)
    split = pack.pool(config.splits or pack.splits)
    start = find_start(config.init, config.backbone).at(config.resolution)
    make_accelerator("no", device=config.device)
    on_main(lambda: config.out.mkdir(parents=True, exist_ok=True))
    on_main(lambda: forget_bad_rows(config.out))
    network = start.load().to(PartialState().device)
    found = frozen_features(config, network, start.view, split, config.out, config.out)

    def write() -> NearPairs:
        pairs = near_pairs(found.h, config.threshold)
        names, lines = pack.splits, list[tuple[str, ...]]()
        for one, other, similarity in zip(
            *(column.tolist() for column in (pairs.first, pairs.second, pairs.similarity)), strict=True
        ):
            rows = int(found.index[one]), int(found.index[other])
            splits = (names[pack.columns.split[row]] for row in rows)
            lines.append((*map(pack.key, rows), f"{similarity:.4f}", *splits))
        columns = ("first", "second", "similarity", "split of first", "split of second")
        write_atomic(config.out / "near_copies.csv", csv_text(columns, lines).encode())
        return pairs

    return on_main(write)


def main() -> None:
    """Parse the command line and run; only rank 0 prints."""
    config = command_line(Config, __doc__)
    pairs = run(config)
    if rank() == 0:
        print(
            f"near_copies: {len(pairs.first):,} pairs from {config.threshold:g} on, recall {pairs.recall:.1%}"
            f"{describe_bad_rows(config.out)} -> {config.out / 'near_copies.csv'}"
        )
        say_next("tools/inspect_pack.py", config.pack, "--features", config.out)


if __name__ == "__main__":
    run_command(main)
