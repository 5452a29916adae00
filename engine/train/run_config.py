"""What every recipe's command line has.

The modules of configurations import nothing that takes time: a mistake on a command line is told before
torch is loaded. Methods that need it import it when they are called.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from engine.choices import Measure, OnNonFinite, Precision
from engine.train.options import OptimizerOptions
from engine.train.trackers import check_trackers
from loaders.common.errors import UserError, check_numbers
from loaders.common.files import to_json
from loaders.common.json_text import parse_json
from loaders.options import LoaderOptions
from loaders.packs.manifest import read_manifest
from loaders.packs.stores.store import as_url
from loaders.views.evaluation import EvaluationView

if TYPE_CHECKING:
    from engine.labels.shared_images import Account
    from engine.nets.description import Origin
    from engine.train.loop_config import LoopConfig
    from loaders.packs.labels.validation import Division

RUNTIME_FIELDS = (
    "allow_leak",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "leaks",
    "loader",
    "log_every",
    "max_steps",
    "on_non_finite",
    "out",
    "pack",
    "probe_every_epochs",
    "probe_splits",
    "progress",
    "resume",
    "trackers",
    "backend",  # the last three were fields before `loader` held them
    "loading",
    "num_threads",
)
"""Fields of a recipe's Config that change how a run is carried out, not what it computes."""


LoaderField = Annotated[LoaderOptions, tyro.conf.arg(name="")]
"""The field of a Config whose options stand on the command line without a name before them."""


def default_loader() -> LoaderOptions:
    """Return how the loaders of a command work unless it is told otherwise."""
    return LoaderOptions(num_threads=2)


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What every command that reads a pack has."""

    pack: Path
    """Folder that tools/pack_dataset.py wrote, or the URL of one in a store."""

    def check_places(self) -> None:
        """Refuse a pack that is not there, before anything is loaded; one in a store is left for later.

        Raises:
            UserError: see `read_manifest`.
        """
        if as_url(str(self.pack)) is None:
            read_manifest(self.pack.expanduser().absolute())


@dataclass(frozen=True, kw_only=True)
class RunConfig(PackConfig, OptimizerOptions):
    """Fields of every recipe; a recipe's Config inherits them and adds its paper's.

    A recipe gives `backbone`, `resolution`, `epochs` and `batch_size` the defaults of its paper by naming
    them again, each with its source.
    """

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
    """Autocast: auto is bf16 where the GPU or the processor (AVX-512 BF16, AMX) has it in hardware, fp16 on
    older GPUs, none on other processors; config.json keeps what was taken, and a resume goes on with it."""
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
    probe_splits: tuple[str, ...] = ("train",)
    """Labelled split of the probe, of which a fifth is held out to measure on; or two splits, to learn from
    and to measure on. Choose by no test split."""
    allow_leak: bool = False
    """Learn from labels of the split that is measured on, or of copies of its images, all the same;
    config.json then names them under leaks."""
    loader: LoaderField = field(default_factory=default_loader)
    """How the loaders work."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no run; a recipe that refuses more calls this too."""
        check_numbers(self, ("resolution", "batch_size", "steps", "max_steps"))
        self.check_optimizer()
        if len(self.probe_splits) not in (1, 2):
            raise UserError(
                f"probe_splits: expected one split, or two, found {len(self.probe_splits)}; change them"
            )
        if self.batch_size == 1:
            raise UserError(
                "batch_size: expected 2 or more, of which BatchNorm takes means, found 1; raise it"
            )
        check_trackers(self.trackers)

    def check_places(self) -> None:
        """Refuse, besides, a run folder that is in use.

        Raises:
            UserError: --out holds a run, without --resume.
        """
        super().check_places()
        if not self.resume and (self.out / "config.json").is_file():
            raise UserError(
                f"run folder: {self.out} already holds a run; add --resume to go on with it, or give another "
                "--out"
            )

    @property
    def evaluation_view(self) -> EvaluationView:
        """What the run is measured with, and whatever is predicted with its weights."""
        return EvaluationView.usual(self.resolution)

    @property
    def origin(self) -> Origin | None:
        """Where weights of others come from that the run begins with; None where it begins with none."""
        return None

    def loop_config(self) -> LoopConfig:
        """Return how the loop carries the run out."""
        from engine.nets.description import describe_origin
        from engine.train.loop_config import LoopConfig

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
            optimizing=OptimizerOptions(**{f.name: getattr(self, f.name) for f in fields(OptimizerOptions)}),
            config=described(self),
            runtime_fields=RUNTIME_FIELDS,
            backbone_metadata={"view": asdict(self.evaluation_view), **describe_origin(self.origin)},
        )

    def loader_options(self) -> LoaderOptions:
        """Return how every loader of the run works on this rank; the processes are joined already."""
        from accelerate import PartialState

        state = PartialState()
        return replace(
            self.loader,
            seed=self.seed,
            device=str(state.device),
            rank=state.process_index,
            num_ranks=state.num_processes,
            channels_last=True,
        )

    def account(self, division: Division | None = None) -> Account:
        """Hold the split that the online probe learns from against the one that it measures on.

        Args:
            division: of the labels of a recipe that has any.

        Raises:
            UserError: they share images, and that is not allowed.
        """
        from engine.labels.shared_images import Account, account_of_probe

        return account_of_probe(self) if self.probe_every_epochs else Account()


@dataclass(frozen=True)
class StartConfig(RunConfig):
    """Fields of every recipe whose backbone may begin with weights that there are already."""

    init: Path | None = None
    """Weights to start from: a run folder, one of its checkpoints, timm:NAME, hf:REPO, or a weights file
    (.safetensors, .pth, .pt, .bin), see docs/pretrained.md; random ones by default."""

    @property
    def evaluation_view(self) -> EvaluationView:
        """What the run is measured with: what the weights that it begins with were trained with."""
        from engine.nets.starts import find_start

        if self.init is None:
            return super().evaluation_view
        return find_start(self.init, self.backbone).view_at(self.resolution)

    @property
    def origin(self) -> Origin | None:
        """Where weights of others come from that the run, or one before it, began with."""
        from engine.nets.starts import find_start

        return None if self.init is None else find_start(self.init, self.backbone).origin


def described(config: Any) -> dict[str, Any]:
    """Return a configuration in JSON types, for files; what opens a store stays out of them.

    A run that begins with weights of others keeps under `origin` which, and their licence.
    """
    content = asdict(config)
    if isinstance(config, RunConfig) and config.origin is not None:
        content["origin"] = asdict(config.origin)
    content["loader"]["store"].pop("filesystem")
    found: dict[str, Any] = parse_json(to_json(content))
    return found


def check_shares(config: RunConfig, names: tuple[str, ...]) -> None:
    """Refuse values of options that are shares, or none, and exceed 1.

    Raises:
        UserError: names the first.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value > 1.0:
            raise UserError(f"{name}: expected a share, at most 1, found {value}; lower it")
