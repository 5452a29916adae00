r"""Measure training: each recipe's model alone, its loader alone, and both together.

Example:
    python tools/bench_training.py --pack packs/mine --resolution 32 --batch-size 128 --json training.jsonl

Images per second of the run's own clock (every image in all its views), the first log window left out. The
three kinds take turns, each in a process of its own: "model" repeats one batch that is already on the
device, "loader" fetches batches and does nothing with them, "training" is the run as it is.

What "together" can reach depends on whether model and loader share their cores. Where each has its own (a
GPU; or --num-threads 1 on two cores or more, one for torch and one for the loader) it is the smaller of the
two. Where both want all cores (--num-threads equal to the cores) it is 1 / (1/model + 1/loader). The table
names both shares; the first is the one to read where cores are not shared, the second where they are.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.measured import Measure
from engine.metrics import read_metrics
from loaders.errors import UserError, check_numbers, run_command
from tools.bench.harness import machine
from tools.bench.records import append_record, check_records

ROOT = Path(__file__).resolve().parents[1]
# fmt: off
RecipeName = Literal[
    "barlow", "rotnet", "jigsaw", "patches", "vae", "siamese_vae", "deepcluster", "simclr", "vicreg",
    "supervised", "mean_teacher", "pseudo_label", "fixmatch", "ssl_gan",
]
# fmt: on
PAIRED = ("mean_teacher", "pseudo_label", "fixmatch", "ssl_gan")
_MU = 3  # unlabelled images per labelled one, so that a batch is the same number of images for all recipes
_HEADS: dict[str, tuple[str, ...]] = {
    "barlow": ("--projector", "512", "512", "512"),
    "rotnet": ("--hidden",),
    "jigsaw": ("--tile-features", "128", "--hidden", "512", "--num-permutations", "64"),
    "patches": ("--hidden", "512"),
    "vae": (),
    "siamese_vae": (),
    "deepcluster": ("--hidden", "--num-clusters", "100"),
    "simclr": ("--projector", "512", "128"),
    "vicreg": ("--projector", "512", "512", "512"),
    "ssl_gan": ("--generator-width", "32"),
}
"""Heads that suit a small backbone; those of the papers would be most of the work."""


@dataclass(frozen=True)
class Config:
    """Benchmark of training."""

    pack: Path
    """Pack to train on."""
    split: str = "unlabeled"
    """Split of the pack whose images need no labels."""
    labeled_split: str = "train"
    """Labelled split, for the recipes that need one."""
    recipes: tuple[RecipeName, ...] = get_args(RecipeName)
    """What to measure."""
    backbone: str = "tiny_resnet"
    """Backbone of every recipe."""
    resolution: int = 32
    """Side of the views in pixels; tiles are a third of it."""
    batch_size: int = 128
    """Images per step; of recipes with both kinds, a quarter is labelled."""
    steps: int = 40
    """Steps of each run, at least 8 and at best no more than an epoch: deepcluster clusters in each."""
    runs: int = 5
    """Rounds; every recipe runs once in each, in all three kinds."""
    num_threads: int = 2
    """Threads of the loader, and of torch as well."""
    json: Path | None = None
    """File to append one line per run to."""

    def __post_init__(self) -> None:
        """Refuse what measures nothing, and a file that takes no records."""
        check_numbers(self)
        if self.steps < 8:
            raise UserError(f"steps: expected at least 8, found {self.steps}; raise them")
        check_records(self.json)


def command_of(config: Config, recipe: str, kind: Measure, out: Path) -> list[str]:
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
    if recipe == "ssl_gan":
        backbone = "gan_discriminator_32"
    return [
        *(*command, "--pack", str(config.pack), "--out", str(out), "--measure", kind),
        *("--backbone", backbone, "--resolution", str(config.resolution)),
        *("--batch-size", str(batch_size), "--max-steps", str(config.steps), "--epochs", "1000"),
        *("--log-every", str(max(1, config.steps // 4)), "--num-threads", str(config.num_threads)),
        *("--no-progress", "--trackers"),
    ]


def measure(config: Config, recipe: str, kind: Measure) -> dict[str, Any]:
    """Run a recipe for some steps and return what its clock says.

    Raises:
        UserError: the run failed; carries its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = command_of(config, recipe, kind, out)
        start = time.perf_counter()
        done = subprocess.run(command, env=_environment(config), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"bench: {recipe} ({kind}) ended with {done.returncode}: {last}")
        windows = read_metrics(out / "metrics.jsonl")[1:]
        return {
            "recipe": recipe,
            "kind": kind,
            "img_per_s": statistics.median(w["img_per_s"] for w in windows),
            "wait_share": statistics.median(w["wait_share"] for w in windows),
            "wall_s": time.perf_counter() - start,
        }


def _environment(config: Config) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(config.num_threads)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Measure every recipe in every kind, round by round; return one record per run."""
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
        for recipe in config.recipes:
            for kind in get_args(Measure):
                record = {"run": number, **measure(config, recipe, kind), **described}
                records.append(record)
                console.print(f"{recipe} {kind}: {record['img_per_s']:,.0f} images/s", highlight=False)
                append_record(config.json, record)
    return records


def render(records: list[dict[str, Any]]) -> Table:
    """Return medians over the runs: images per second, and training as a share of the smaller half."""
    columns = ("recipe", "model alone", "loader alone", "training", "of the smaller", "of shared", "waiting")
    table = Table(*columns, title="images per second, median over runs")
    for recipe in dict.fromkeys(r["recipe"] for r in records):
        speed = {
            kind: statistics.median(
                r["img_per_s"] for r in records if (r["recipe"], r["kind"]) == (recipe, kind)
            )
            for kind in get_args(Measure)
        }
        waits = [r["wait_share"] for r in records if (r["recipe"], r["kind"]) == (recipe, "training")]
        model, loader, training = speed["model"], speed["loader"], speed["training"]
        shared = 1 / (1 / model + 1 / loader)
        table.add_row(
            recipe,
            *(f"{value:,.0f}" for value in (model, loader, training)),
            f"{training / min(model, loader):.1%}",
            f"{training / shared:.1%}",
            f"{statistics.median(waits):.1%}",
        )
    return table


def main() -> None:
    """Run the command line."""
    console = Console(stderr=True)
    Console().print(render(run(tyro.cli(Config, description=__doc__), console)))


if __name__ == "__main__":
    run_command(main)
