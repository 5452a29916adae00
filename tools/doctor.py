"""Find the bottleneck of a training on a pack, and what would help, in under a minute.

It measures each stage by itself: reading from storage and from memory, decoding, views, the copy to the
device, the network on random numbers. Then it measures all of them together.

Examples:
    python tools/doctor.py packs/mine
    python tools/doctor.py packs/mine --recipe barlow --backbone resnet18 --resolution 96 --batch-size 256
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from engine.nets.names import check_mentioned
from engine.train.run_config import DEFAULT_LOADER, LoaderField, PackConfig
from loaders.common.checks import Count, Positive, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.program import Positional, check_command_line, command_line

ViewsOf = Literal["supervised", "barlow", "simclr", "fixmatch"]
StageName = Literal["storage", "decoding", "views", "copy", "network"]


@dataclass(frozen=True)
class Config(PackConfig):
    """Measure the stages of a training on a pack, and name the bottleneck."""

    pack: Positional[Path]
    """Folder of the pack."""
    split: str | None = None
    """Split to train on; the largest one by default."""
    recipe: ViewsOf = "supervised"
    """Recipe whose views are drawn: one crop, the two views of Barlow Twins or SimCLR, or FixMatch's weak and
    strong view."""
    backbone: str = "resnet18"
    """Network to train, by a name that recipes take."""
    resolution: Count = 96
    """Side of the views in pixels."""
    batch_size: Count = 64
    """Images per step."""
    device: str = "auto"
    """Device of the network; auto takes a GPU if there is one."""
    seconds: Positive = 5.0
    """About how long each of the seven measurements may take."""
    loader: LoaderField = DEFAULT_LOADER
    """Options of the loader."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_numbers(self)

    def check_places(self) -> None:
        """Refuse an unknown network and a missing pack, split or backend, before anything is loaded."""
        check_mentioned(self.backbone)
        super().check_places()


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from engine.device import taken_device
from engine.train.run_config import on_device
from loaders import open_pack
from loaders.common.cores import available_cores
from loaders.common.next_step import say_next
from loaders.common.tables import print_table
from loaders.packs import Split
from loaders.views import presets
from loaders.views.policy import ViewPolicy
from tools.bench import stages
from tools.command.first_training import say_training, splits_of

_ROOM = 1.15  # ratio of short side to resolution above which a random crop loses no detail
_EXCESS = 1.3  # ratio of measured to expected time above which a line says that they differ
_WORTH = 1.1  # smallest speed-up for which a remedy is printed


@dataclass(frozen=True)
class Diagnosis:
    """Seconds per image of every stage by itself, and of all stages together.

    Attributes:
        cold: reading, after asking the system to drop the shards from the page cache.
        warm: reading from the page cache.
        decoding: decoding, in all threads; 0 for a pack of pixels.
        views: drawing views, in all threads.
        copy: copying to the device; 0 on the CPU.
        network: forward pass, backward pass and optimizer step.
        shares_cores: whether loader and network share the CPU.
        is_cached: whether the pack fits in memory, so that a run reads from storage only once.
    """

    cold: float
    warm: float
    decoding: float
    views: float
    copy: float
    network: float
    together: float
    shares_cores: bool
    is_cached: bool = True

    @property
    def stages(self) -> dict[StageName, float]:
        """Seconds per image of each stage in a run; storage counts as warm if the pack fits in memory."""
        storage = self.warm if self.is_cached else self.cold
        values = (storage, self.decoding, self.views, self.copy, self.network)
        return dict(zip(get_args(StageName), values, strict=True))

    @property
    def bound(self) -> StageName:
        """The bottleneck: the stage with the most seconds per image."""
        return max(self.stages, key=self.stages.__getitem__)

    def expected(self, **changed: float) -> float:
        """Return the expected seconds per image of all stages at once, with some stages' times changed.

        The times of stages that share the CPU add up. Other stages overlap, and the slowest one counts.
        """
        found: dict[str, float] = {**{str(k): v for k, v in self.stages.items()}, **changed}
        loading = found["decoding"] + found["views"]
        if self.shares_cores:
            return max(found["storage"], loading + found["network"])
        return max(found["storage"], loading, found["copy"], found["network"])

    def gain(self, **changed: float) -> float:
        """Return the factor by which a run is expected to become faster with these stages' times changed."""
        return self.expected() / max(self.expected(**changed), 1e-12)


def make_work(config: Config) -> stages.Work:
    """Return the workload to measure.

    Raises:
        UserError: there is no such split or device.
    """
    pack = open_pack(config.pack, config.loader.store)
    name = config.split or max(pack.splits, key=lambda name: len(pack.split(name)))
    options = on_device(config.loader, find_device(config.device))
    split: Split = pack.split(name)
    size = min(config.batch_size, len(split))
    return stages.Work(
        split, views_of(config.recipe, config.resolution), config.backbone, size, options, config.seconds
    )


def find_device(name: str) -> str:
    """Return the device with this name; for auto, the one that training would take.

    Raises:
        UserError: this machine has no device with this name.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if name not in ("auto", *known):
        raise UserError(f"device: expected auto or {', '.join(known)}, found {name!r}; name one of these")
    return taken_device() if name == "auto" else name


def views_of(recipe: ViewsOf, resolution: int) -> tuple[ViewPolicy, ...]:
    """Return the views of a recipe."""
    views: dict[ViewsOf, tuple[ViewPolicy, ...]] = {
        "supervised": (presets.crop_flip(resolution),),
        "barlow": (presets.barlow_a(resolution), presets.barlow_b(resolution)),
        "simclr": (presets.simclr(resolution), presets.simclr(resolution)),
        "fixmatch": (presets.weak(resolution), presets.fixmatch_strong(resolution)),
    }
    return views[recipe]


def diagnose(work: stages.Work) -> Diagnosis:
    """Measure every stage."""
    with tempfile.TemporaryDirectory() as scratch:
        views = stages.rendering(work, Path(scratch))
    step = stages.Step(work)
    size_bytes = int(work.split.pack.columns.size.sum(dtype=np.uint64))
    return Diagnosis(
        cold=stages.reading(work, cold=True),
        warm=stages.reading(work, cold=False),
        decoding=stages.decoding(work),
        views=views,
        copy=stages.copying(work),
        network=stages.training(work, step),
        together=stages.together(work, step),
        shares_cores=torch.device(work.options.device).type == "cpu",
        is_cached=size_bytes < _free_bytes(),
    )


def _free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def remedies(found: Diagnosis, work: stages.Work) -> list[tuple[str, float]]:
    """Return the remedies with their speed-ups, the best first; speed-ups below 1.1 are left out."""
    columns, rows = work.split.pack.columns, work.rows
    side = max(view.resolution for view in work.views)
    short = float(np.median(np.minimum(columns.height[rows], columns.width[rows])))
    target = int(-(-_ROOM * side // 32) * 32)
    choices: list[tuple[str, float]] = []
    if short > 1.2 * target and found.decoding:
        share = (target / short) ** 2
        smaller = {"decoding": found.decoding * share, "storage": found.stages["storage"] * share}
        choices.append((f"pack again with --short-side {target} (now {short:.0f} px)", found.gain(**smaller)))
    if found.decoding:
        pixels = "pack again with --encoding raw: a larger pack, but no decoding"
        choices.append((pixels, found.gain(decoding=0.0)))
    cores, threads = available_cores(), work.num_threads
    if cores > threads:
        more = {name: found.stages[name] * threads / cores for name in ("decoding", "views")}
        choices.append((f"--num-threads {cores} instead of {threads}", found.gain(**more)))
    if not found.is_cached:
        choices.append(("faster storage, or memory that holds the pack", found.gain(storage=found.warm)))
    choices.append(("fewer or smaller views (gain if they took no time)", found.gain(views=0.0)))
    half = {"network": found.network / 2}
    choices.append(("a network, or a device, twice as fast", found.gain(**half)))
    return sorted(((text, gain) for text, gain in choices if gain >= _WORTH), key=lambda pair: -pair[1])


def print_diagnosis(console: Console, found: Diagnosis, work: stages.Work) -> None:
    """Print the stages, the bottleneck and the remedies."""
    what = (
        f"{len(work.views)} views of {work.views[0].resolution} px, {work.backbone}, batch {work.batch_size}"
    )
    table = Table("stage", "images/s", title=f"{work.split.name}: {what} on {work.options.device}")
    names = {"storage, cold": found.cold, "storage, warm": found.warm, "decoding": found.decoding}
    names |= {"views": found.views, "copy to the device": found.copy, "network": found.network}
    for name, seconds in (names | {"together": found.together}).items():
        table.add_row(name, f"{1 / seconds:,.0f}" if seconds else "-")
    print_table(console, table)
    share = found.stages[found.bound] / sum(found.stages.values())
    print(f"bottleneck: {found.bound}, {share:.0%} of the sum of all stages")
    excess = found.together / found.expected()
    if excess > _EXCESS:
        print(f"together they take {excess:.1f} times the expected time: other load, or memory bandwidth")
    for text, gain in remedies(found, work):
        print(f"would help: {text}: about x{gain:.1f}")


def main() -> None:
    """Parse the command line and run."""
    config, start = command_line(Config, __doc__), time.perf_counter()
    work = make_work(config)
    print_diagnosis(Console(), diagnose(work), work)
    print(f"doctor: {time.perf_counter() - start:.0f} s")
    network = ("--backbone", config.backbone, "--resolution", config.resolution)
    begin = ("--pack", config.pack, *network, "--batch-size", config.batch_size)
    splits: tuple[str, ...] = ("--split", work.split.name)
    if config.recipe in ("supervised", "fixmatch"):
        learnt, measured = splits_of(work.split.pack)
        if not learnt:
            say_training(work.split.pack, config.pack)
            return
        splits = ("--labeled-split", learnt, "--test-split", measured)
    say_next(f"recipes/{config.recipe}.py", *begin, *splits, "--out", f"runs/{config.recipe}")


if __name__ == "__main__":
    run_command(main)
