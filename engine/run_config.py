"""What every recipe's command line has, and how every recipe is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from engine.distributed import Precision, make_accelerator, seed_everything
from engine.files import to_json
from engine.loop import LoopConfig, TrainSummary, train
from engine.recipe import Recipe
from loaders.batch import Loader

RUNTIME_FIELDS = (
    "backend",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "log_every",
    "max_steps",
    "num_threads",
    "out",
    "pack",
    "progress",
    "resume",
    "trackers",
)
"""Fields of a recipe's Config that change how a run is carried out, not what it computes."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fields of every recipe; a recipe's Config inherits them and adds its paper's.

    A recipe gives `backbone`, `resolution`, `epochs` and `batch_size` the defaults of its paper by naming
    them again, each with its source, and adds `backend: BackendName`, whose type belongs to the loaders.
    """

    pack: Path
    """Folder that tools/pack_dataset.py wrote."""
    out: Path
    """Run folder."""
    backbone: str
    """Any timm name, or one of this project."""
    resolution: int
    """Side of the views in pixels."""
    epochs: int
    """Passes over the split."""
    batch_size: int
    """Images per step over all ranks."""
    seed: int = 0
    """Of the weights, the order and the views."""
    resume: bool = False
    """Go on from the newest whole checkpoint in --out, or start where there is none."""
    precision: Precision = "auto"
    """Autocast: auto is bf16 on CUDA and none on the CPU; bf16 may be asked for on the CPU too."""
    num_threads: int = 2
    """Decoding threads of each rank."""
    log_every: int = 10
    """Steps between log lines."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; the end of the run always writes one."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""
    max_steps: int | None = None
    """End early after this many steps, with the schedule of the whole run."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where accelerate also logs to, such as tensorboard or wandb; may be empty."""
    progress: bool = True
    """Show progress."""

    def loop_config(self) -> LoopConfig:
        """Return how the loop carries the run out."""
        return LoopConfig(
            out=self.out,
            epochs=self.epochs,
            seed=self.seed,
            resume=self.resume,
            log_every=self.log_every,
            checkpoint_every_steps=self.checkpoint_every_steps,
            keep_checkpoints=self.keep_checkpoints,
            max_steps=self.max_steps,
            progress=self.progress,
            config=json.loads(to_json(asdict(self))),
            runtime_fields=RUNTIME_FIELDS,
            backbone_metadata={"resolution": str(self.resolution)},
        )

    def loader_options(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the arguments that every `build_loader` and `build_paired_loader` of the run shares.

        Args:
            accelerator: says which device and which of how many ranks.
        """
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "device": str(accelerator.device),
            "num_threads": self.num_threads,
            "rank": accelerator.process_index,
            "num_ranks": accelerator.num_processes,
            "channels_last": True,
        }


def run_recipe(
    config: RunConfig,
    make_recipe: Callable[[Accelerator], Recipe],
    make_loader: Callable[[Accelerator], Loader[Any]],
) -> TrainSummary:
    """Build a recipe and its loader after seeding, train, and close what was opened.

    Args:
        config: of the run.
        make_recipe: builds the recipe with the weights of the seed, which is set just before.
        make_loader: builds the loader of this rank.

    Returns:
        The summary of the run, whose folder is `config.out`.
    """
    accelerator = make_accelerator(config.precision, config.out, config.trackers)
    seed_everything(config.seed)
    recipe = make_recipe(accelerator)
    loader = make_loader(accelerator)
    try:
        return train(recipe, loader, accelerator, config.loop_config())
    finally:
        loader.close()
        accelerator.end_training()


def print_summary(name: str, summary: TrainSummary) -> None:
    """Print one line on a run that is over."""
    print(
        f"{name}: {summary.step} of {summary.total_steps} steps, loss {summary.loss:.4g}, "
        f"{summary.img_per_s:,.0f} images/s, {summary.wait_share:.0%} waiting for data -> {summary.backbone}"
    )
