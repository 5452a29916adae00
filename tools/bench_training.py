r"""Measure training: each recipe's model alone, its loader alone, and both together.

Example:
    python tools/bench_training.py --pack packs/mine --resolution 32 --batch-size 128 --json training.jsonl

A rate is images per second, as the run itself measures it; an image counts once with all its views. In each
round and precision, a recipe runs twice, each time in a new process. The run "turns" alternates between
windows (--window steps) of fresh batches ("together") and windows that repeat the last batch ("model alone");
the run "loader" only fetches batches. The first window is left out. A window of repeated batches and the next
window, of fresh batches, are only seconds apart, so a drift of the machine hardly changes their ratio.

What "together" can reach depends on whether model and loader share cores. If they do not (on a GPU, or with
--num-threads 1 on two or more cores, one for torch and one for the loader), the limit is the slower of the
two. If both use all cores (--num-threads equal to the number of cores), the limit is
1 / (1/model + 1/loader). The table has training as a share of both limits: "of the smaller" applies if cores
are not shared, "of shared" if they are.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.choices import Measure, Precision
from engine.nets.names import check_mentioned
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line
from tools.bench.records import RecordConfig

# fmt: off
RecipeName = Literal[
    "barlow", "rotnet", "jigsaw", "patches", "vae", "siamese_vae", "colorization", "dcgan",
    "deepcluster", "simclr", "vicreg",
    "supervised", "mean_teacher", "temporal_ensembling", "pseudo_label", "fixmatch", "ssl_gan",
]


@dataclass(frozen=True)
class Config(RecordConfig):
    """Benchmark of training."""

    pack: Path
    """Pack to train on."""
    split: str = "unlabeled"
    """Split of the pack whose images are used without labels."""
    labeled_split: str = "train"
    """Labelled split, for the recipes that need one."""
    recipes: tuple[RecipeName, ...] = get_args(RecipeName)
    """Recipes to measure."""
    backbone: str = "tiny_resnet"
    """Backbone of the recipes; `dcgan` and `ssl_gan` train `gan_discriminator_32` instead."""
    resolution: Count = 32
    """Side of the views in pixels; the tiles of `jigsaw` and `patches` have a third of it."""
    batch_size: Count = 128
    """Images per step; in recipes with labelled and unlabelled images, a quarter of them is labelled."""
    window: Count = 50
    """Steps per window. While a batch is repeated the loader works ahead, so up to three fresh batches come
    without waiting; in a long window their share is small."""
    pairs: Count = 3
    """Number of pairs of windows in a run; in each, first one batch is repeated, then batches are fresh. All
    windows should fit into one epoch, since `deepcluster` clusters anew in every epoch."""
    runs: Count = 1
    """Rounds; in each round, every recipe is measured once in every precision."""
    num_threads: Count = 2
    """Threads of the loader, and also threads of torch."""
    precisions: tuple[Precision, ...] = ("auto",)
    """Precisions of autocast to measure."""

    def check_places(self) -> None:
        """Refuse an unknown network and a missing pack, before anything is loaded."""
        check_mentioned(self.backbone)
        super().check_places()

    @property
    def steps(self) -> int:
        """Steps of a run: a window for warming up, then the pairs of windows."""
        return self.window * (1 + 2 * self.pairs)




if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from rich.console import Console
from rich.table import Table

from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from loaders.common.tables import print_table
from tools.bench.process import environment, machine
from tools.bench.records import append_record

ROOT = Path(__file__).resolve().parents[1]
# fmt: on
KINDS: tuple[Measure, ...] = ("turns", "loader")
PAIRED = ("mean_teacher", "temporal_ensembling", "pseudo_label", "fixmatch", "ssl_gan")
_MU = 3  # unlabelled images per labelled one
_HEADS: dict[str, tuple[str, ...]] = {
    "barlow": ("--projector", "512", "512", "512"),
    "rotnet": ("--hidden",),
    "jigsaw": ("--tile-features", "128", "--hidden", "512", "--num-permutations", "64"),
    "patches": ("--hidden", "512"),
    "vae": (),
    "siamese_vae": (),
    "colorization": ("--head-width", "32"),
    "dcgan": ("--generator-width", "32"),
    "deepcluster": ("--hidden", "--num-clusters", "100"),
    "simclr": ("--projector", "512", "128"),
    "vicreg": ("--projector", "512", "512", "512"),
    "ssl_gan": ("--generator-width", "32"),
}
"""Options for heads that suit a small backbone; the heads of the papers would take most of the time."""


def command_of(config: Config, recipe: str, precision: Precision, kind: Measure, out: Path) -> list[str]:
    """Return the command line of one run."""
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *_HEADS.get(recipe, ())]
    if recipe in ("jigsaw", "patches"):
        command += ["--tile-size", str(config.resolution // 3)]
    batch_size, backbone = config.batch_size, config.backbone
    if recipe == "supervised" or recipe in PAIRED:
        command += ["--labeled-split", config.labeled_split]
    else:
        command += ["--split", config.split]
    if recipe in PAIRED:
        batch_size //= 1 + _MU
        command += ["--unlabeled-splits", config.split, "--mu", str(_MU)]
    if recipe in ("dcgan", "ssl_gan"):
        backbone = "gan_discriminator_32"
    return [
        *(*command, "--pack", str(config.pack), "--out", str(out), "--measure", kind),
        *("--backbone", backbone, "--resolution", str(config.resolution)),
        *("--batch-size", str(batch_size), "--max-steps", str(config.steps), "--epochs", "1000"),
        *("--log-every", str(config.window), "--num-threads", str(config.num_threads)),
        *("--precision", precision, "--no-progress", "--trackers"),
    ]


def measure(config: Config, recipe: str, precision: Precision, kind: Measure) -> dict[str, Any]:
    """Run a recipe for `config.steps` steps and return a record with the rates that it measured.

    Raises:
        UserError: the run failed; the message has the last line of its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = command_of(config, recipe, precision, kind, out)
        start = time.perf_counter()
        threads = environment(config.num_threads)
        done = subprocess.run(command, env=threads, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"bench: {recipe} ({kind}, {precision}) exited with {done.returncode}: {last}")
        windows = read_metrics(out / "metrics.jsonl")[1:]
        speeds = [window["img_per_s"] for window in windows]
        record = {
            "recipe": recipe,
            "precision": precision,
            "kind": kind,
            "wall_s": time.perf_counter() - start,
        }
        if kind == "loader":
            return {**record, "img_per_s": statistics.median(speeds)}
        fresh = windows[1::2]
        return {
            **record,
            "model_img_per_s": speeds[::2],
            "img_per_s": [window["img_per_s"] for window in fresh],
            "wait_share": statistics.median(window["wait_share"] for window in fresh),
        }


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Measure every recipe in every precision, round by round; return one record per run."""
    described = {
        "pack": config.pack.name,
        "backbone": config.backbone,
        "resolution": config.resolution,
        "batch_size": config.batch_size,
        "threads": config.num_threads,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **machine(),
    }
    records = []
    for number in range(config.runs):
        for recipe, precision, kind in product(config.recipes, config.precisions, KINDS):
            record = {"run": number, **measure(config, recipe, precision, kind), **described}
            records.append(record)
            console.print(f"{recipe} {precision} {kind}: {record['wall_s']:.0f} s", highlight=False)
            append_record(config.json, record)
    return records


def render(records: list[dict[str, Any]]) -> Table:
    """Return a table of medians over all windows, and of training as a share of its limits.

    A share is the median over pairs of neighbouring windows; "of the smaller" has its standard error.
    """
    columns = (
        "recipe",
        "precision",
        "model alone",
        "loader alone",
        "together",
        "of the smaller",
        "of shared",
        "waiting",
    )
    table = Table(*columns, title="images per second, median over windows")
    for row in dict.fromkeys((r["recipe"], r["precision"]) for r in records):
        own = [r for r in records if (r["recipe"], r["precision"]) == row]
        turns = [r for r in own if r["kind"] == "turns"]
        alone = [r["img_per_s"] for r in own if r["kind"] == "loader"]
        models = [speed for r in turns for speed in r["model_img_per_s"]]
        together = [speed for r in turns for speed in r["img_per_s"]]
        shares = [a / b for a, b in zip(together, models, strict=True)]
        loader, model, share = statistics.median(alone), statistics.median(models), statistics.median(shares)
        of_smaller, of_shared = share * max(1.0, model / loader), share * (1 + model / loader)
        # The standard error of a median is 1.25 times that of a mean.
        several = len(shares) > 1
        error = f" ± {1.25 * statistics.stdev(shares) / len(shares) ** 0.5:.1%}" if several else ""
        table.add_row(
            *row,
            *(f"{value:,.0f}" for value in (model, loader, statistics.median(together))),
            f"{of_smaller:.1%}{error}",
            f"{of_shared:.1%}",
            f"{statistics.median(r['wait_share'] for r in turns):.1%}",
        )
    return table


def main() -> None:
    """Parse the command line and run."""
    console = Console(stderr=True)
    print_table(Console(), render(run(command_line(Config, __doc__), console)))


if __name__ == "__main__":
    run_command(main)
