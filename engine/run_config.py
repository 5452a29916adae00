"""What every recipe's command line has, and how every recipe is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from accelerate import Accelerator

from engine.bad_rows import describe_bad_rows
from engine.distributed import Precision, make_accelerator, seed_everything
from engine.files import to_json
from engine.finite import OnNonFinite
from engine.leaks import Account, SplitField, describe_shared
from engine.loop import LoopConfig, TrainSummary, train
from engine.measured import Idle, Measure, TakingTurns
from engine.online_probe import OnlineProbe
from engine.recipe import Recipe
from loaders.batch import Batch, Loader
from loaders.errors import UserError, check_numbers
from loaders.json_text import parse_json
from loaders.packs import open_pack
from loaders.packs.leaks import check_leak
from loaders.views.evaluation import EvaluationView

RUNTIME_FIELDS = (
    "allow_leak",
    "backend",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "leaks",
    "loading",
    "log_every",
    "max_steps",
    "num_threads",
    "on_non_finite",
    "out",
    "pack",
    "probe_every_epochs",
    "probe_splits",
    "progress",
    "resume",
    "trackers",
)
"""Fields of a recipe's Config that change how a run is carried out, not what it computes."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What loaders make of damage and delay."""

    verify: bool = False
    """Compare every image with its CRC-32 in the index; one that differs is a damaged image. Without it a
    flipped bit that still decodes goes unnoticed."""
    bad_images: Literal["replace", "raise"] = "replace"
    """A damaged image: replace it by the next readable row and name it in bad_rows.jsonl; or raise: stop."""
    timeout_s: float = 120.0
    """Seconds that a batch may take before the run stops with an error."""
    window: int = 16
    """Backend stream: shards shuffled together; more mix better and need a larger cache."""


LoadingOptions = Annotated[Loading, tyro.conf.arg(name="")]
"""The field of a Config whose options stand on the command line without a name before them."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fields of every recipe; a recipe's Config inherits them and adds its paper's.

    A recipe gives `backbone`, `resolution`, `epochs` and `batch_size` the defaults of its paper by naming
    them again, each with its source, and adds `backend: BackendName`, whose type belongs to the loaders.
    """

    pack: Path
    """Folder that tools/pack_dataset.py wrote, or the URL of one in a store."""
    out: Path
    """Run folder: configuration, metrics.jsonl, checkpoints, weights. New, or that of --resume."""
    backbone: str
    """Any timm name, or one of this project."""
    resolution: int
    """Side of the views in pixels."""
    epochs: int
    """Passes over the split."""
    batch_size: int
    """Images per step over all ranks."""
    seed: int = 0
    """Seed of the weights, the order and the views."""
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
    """Number of the newest checkpoints that are kept."""
    on_non_finite: OnNonFinite = "stop"
    """A loss or gradient that is NaN or infinite: stop; or skip the step and wait for the device in each."""
    steps: int | None = None
    """Length of the run in steps instead of --epochs, schedule included; a command of several phases gives
    each of them so many."""
    max_steps: int | None = None
    """End early after this many steps, with the schedule of the whole run."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where accelerate also logs to, such as tensorboard or wandb; may be empty."""
    progress: bool = True
    """Show a line of progress."""
    measure: Measure = "training"
    """training; or, to measure speed: turns repeats a batch in every second log window, loader leaves out the
    model."""
    probe_every_epochs: int = 0
    """Epochs between measurements of kNN and a linear probe on frozen features; 0: none. The labels reach
    no gradient; probe.jsonl states the seconds that each took."""
    probe_splits: tuple[str, str] = ("train", "test")
    """Labelled splits of the probe: to learn from, and to measure on."""
    allow_leak: bool = False
    """Learn from labels of the split that is measured on, or of copies of its images, all the same;
    config.json then names them under leaks."""
    loading: LoadingOptions = field(default_factory=Loading)
    """Damage and delay."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no run; a recipe that refuses more calls this too."""
        check_numbers(self, ("resolution", "batch_size", "num_threads", "steps", "max_steps", "timeout_s"))
        if self.batch_size == 1:
            raise UserError(
                "batch_size: expected 2 or more, of which BatchNorm takes means, found 1; raise it"
            )

    @property
    def evaluation_view(self) -> EvaluationView:
        """What the run is measured with, and whatever is predicted with its weights."""
        return EvaluationView.usual(self.resolution)

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
            on_non_finite=self.on_non_finite,
            steps=self.steps,
            max_steps=self.max_steps,
            progress=self.progress,
            config=parse_json(to_json(asdict(self))),
            runtime_fields=RUNTIME_FIELDS,
            backbone_metadata={"view": asdict(self.evaluation_view)},
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
            **asdict(self.loading),
        }


InOrder = Callable[..., Loader[Batch]]
"""(split, **RunConfig.loader_options) -> its images in order, without augmentation, this rank's share."""


def run_recipe(
    config: RunConfig,
    make_recipe: Callable[[Accelerator], Recipe],
    make_loader: Callable[..., Loader[Any]],
    in_order: InOrder | None = None,
) -> TrainSummary:
    """Build a recipe and its loader after seeding, train, and close what was opened.

    Args:
        config: of the run.
        make_recipe: builds the recipe with the weights of the seed, which is set just before.
        make_loader: (**RunConfig.loader_options) -> the loader of this rank.
        in_order: builds the loaders of the online probe; a recipe without it has no probe.

    Returns:
        The summary of the run, whose folder is `config.out`.

    Raises:
        UserError: a probe asked of a recipe that has none, or a mistake in the configuration.
    """
    if config.probe_every_epochs < 0 or (config.probe_every_epochs and in_order is None):
        raise UserError(
            f"probe_every_epochs: expected 0{' or more' if in_order else ', this recipe has no probe'}, "
            f"found {config.probe_every_epochs}"
        )
    shared = account_of_probe(config) if config.probe_every_epochs else Account()
    accelerator = make_accelerator(config.precision, config.out, config.trackers)
    seed_everything(config.seed)
    with ExitStack() as opened:
        opened.callback(accelerator.end_training)
        recipe = make_recipe(accelerator) if config.measure != "loader" else Idle()
        options = config.loader_options(accelerator)
        loader = make_loader(**options)
        opened.callback(loader.close)
        if config.measure == "turns":
            loader = TakingTurns(loader, config.log_every)
        probe = None
        if config.probe_every_epochs and in_order is not None:
            shared.say()
            splits = []
            for split in config.probe_splits:
                splits.append(in_order(split, **options))
                opened.callback(splits[-1].close)
            probe = OnlineProbe(splits[0], splits[1], config.probe_every_epochs)
        loop_config = config.loop_config()
        loop_config = replace(loop_config, config=shared.describe(loop_config.config))
        return train(recipe, loader, accelerator, loop_config, probe)


def account_of_probe(config: RunConfig) -> Account:
    """Hold the split that the online probe learns from against the one that it measures on.

    Raises:
        UserError: they share images, and that is not allowed.
    """
    pack = open_pack(config.pack)
    bank, measured = (pack.split(name) for name in config.probe_splits)
    rows = bank.rows(np.arange(len(bank)))
    leaks = check_leak(pack, rows, measured, config.allow_leak, "probe_splits")
    if not isinstance(config, SplitField):
        return Account(leaks)
    return Account(leaks, describe_shared(pack.split(config.split), measured))


def check_shares(config: RunConfig, names: tuple[str, ...]) -> None:
    """Refuse values of options that are shares, or none, and exceed 1.

    Raises:
        UserError: names the first.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value > 1.0:
            raise UserError(f"{name}: expected a share, at most 1, found {value}; lower it")


def describe_training(summary: TrainSummary, out: Path) -> str:
    """Return in words how far a training came, at what figures and how fast, or that it was over before."""
    done, bad_rows = f"{summary.step} of {summary.total_steps} steps", describe_bad_rows(out)
    if summary.img_per_s == 0.0:
        return f"{done}, taken before{bad_rows}"
    figures = {"loss": summary.loss, **summary.metrics}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    speed = f"{summary.img_per_s:,.0f} images/s, {summary.wait_share:.0%} waiting for data"
    return f"{done}, {shown}, {speed}{bad_rows}"


def print_summary(name: str, summary: TrainSummary) -> None:
    """Print one line on a run that is over."""
    print(f"{name}: {describe_training(summary, summary.backbone.parent)} -> {summary.backbone}")
