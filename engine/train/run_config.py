"""The options that the command lines of recipes share.

Configuration modules import no heavy library, so that a mistake on a command line is reported before torch is
loaded. Methods that need torch import it when they are called.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from engine.choices import Device, Measure, OnNonFinite, Precision
from engine.device import taken_device
from engine.nets.names import check_start
from engine.train.options import OptimizerOptions, PresetOptions, ValidationOptions
from engine.train.same_run import check_given
from engine.train.trackers import check_trackers
from loaders.common.checks import Count, check_batch, check_numbers
from loaders.common.cores import cores_per_rank
from loaders.common.errors import UserError
from loaders.common.files import check_exists, check_folder, to_json
from loaders.common.json_text import parse_json
from loaders.options import LoaderOptions, check_backend, usual_backend
from loaders.packs.labels.class_names import joined_class_names, require_classes
from loaders.packs.manifest import Manifest, read_manifest
from loaders.packs.stores.connect import as_url
from loaders.views.evaluation import EvaluationView, Side

if TYPE_CHECKING:
    from engine.labels.shared_images import Account
    from engine.nets.description import Origin
    from engine.train.loop_config import LoopConfig
    from loaders.packs.labels.validation import Division

RUNTIME_FIELDS = (
    "allow_leak",
    "checkpoint_every_steps",
    "compile",
    "device",
    "keep_checkpoints",
    "leaks",
    "loader",
    "log_every",
    "max_steps",
    "on_non_finite",
    "out",
    "pack",
    "preset",
    "probe_every_epochs",
    "probe_splits",
    "progress",
    "resume",
    "trackers",
    "backend",  # this and the next two are fields of older runs; `loader` holds them now
    "loading",
    "num_threads",
)
"""Fields of a run's config.json that may differ when the run resumes."""


LoaderField = Annotated[LoaderOptions, tyro.conf.arg(name="")]
"""Type of the field `loader`, whose options have no prefix on the command line."""

DEFAULT_LOADER = LoaderOptions()
"""The loader options of a command line that gives none."""
_THREADS_BESIDE_A_NETWORK = 2


_OF_SPLITS = (
    *("split", "labeled_split", "train_split", "unlabeled_split", "unlabeled_splits", "test_split"),
    *("validation_split", "probe_splits"),
)
_OF_LABELS = ("labeled_split", "train_split", "test_split", "validation_split", "probe_splits")


def is_usual(config: object, option: str) -> bool:
    """Return whether an option of a configuration has its default."""
    return bool(getattr(config, option) == getattr(type(config), option, None))


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Options of commands that read a pack."""

    pack: Path
    """Folder that tools/pack_dataset.py wrote, or the URL of such a folder in a store."""

    label_free: ClassVar[tuple[str, ...]] = ()
    """Options among `_OF_LABELS` that may name a split without labels."""

    def check_places(self) -> None:
        """Refuse a pack, split, file of labels, start, backbone, backend or GPU that is missing or unusable.

        A pack in a store is checked later, since reading it takes heavy libraries.

        Raises:
            UserError: the first mistake; see `read_manifest`.
        """
        if getattr(self, "device", "auto") == "cuda":
            taken_device("cuda")
        manifest = self._manifest()
        names = [split.name for split in manifest.splits] if manifest else []
        backend = getattr(self, "loader", DEFAULT_LOADER).backend
        check_backend(backend, manifest.shard_format if manifest else None)
        if getattr(self, "filled", None) is not None:  # a filled-in request names its rows: no split is read
            names = []
        for option in _OF_SPLITS if names else ():
            given = getattr(self, option, None) or ()
            if option == "probe_splits" and not getattr(self, "probe_every_epochs", 0):
                given = ()
            given = (given,) if isinstance(given, str) else given
            if option == "validation_split" and isinstance(self, ValidationOptions):
                given = () if self.validation_table else given
            absent = [name for name in given if name not in names]
            if absent and not (is_usual(self, option) and len(absent) < len(given)):
                raise UserError(
                    f"{option}: expected a split of {self.pack} ({', '.join(names)}), found {absent[0]!r}; "
                    f"give one with --{option.replace('_', '-')}"
                )
            if manifest and given and option in _OF_LABELS and option not in self.label_free:
                self._check_labels(manifest, option, given)
        for table in getattr(self, "extra_labels", ()):
            check_exists(table, "extra_labels", "a label table")
        if table := getattr(self, "validation_table", None):
            check_exists(table, "validation_split", "a label table")
        if filled := getattr(self, "filled", None):
            check_exists(filled, "filled", "a filled-in request")
        for option in ("init", "run"):
            classifies = option == "run" and not isinstance(self, FrozenConfig)
            backbone = None if classifies else getattr(self, "backbone", None)
            check_start(getattr(self, option, None), option, backbone, classifies)

    def _check_labels(self, manifest: Manifest, option: str, splits: tuple[str, ...]) -> None:
        """Refuse several labels per image, no class names (for --extra-labels), and splits without labels."""
        manifest.require_one_label(self.pack)
        extra = getattr(self, "extra_labels", None)
        if extra is not None:
            require_classes(self.pack, joined_class_names(self.pack.expanduser(), manifest.classes))
        for name in splits if not (extra and option in ("labeled_split", "train_split")) else ():
            manifest.require_labels(name, option)

    def _manifest(self) -> Manifest | None:
        return None if as_url(str(self.pack)) else read_manifest(self.pack.expanduser().absolute())


@dataclass(frozen=True, kw_only=True)
class ForwardConfig:
    """Options of commands that run a network on images without training it."""

    batch_size: Count = 256
    """Images per forward pass of each process; does not affect the result."""
    device: Device = "auto"
    """Where the network computes. auto: the GPU if there is one, else the processor; cpu: the processor;
    cuda: the GPU, or an error if there is none."""
    loader: LoaderField = DEFAULT_LOADER
    """How the loaders work."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(PackConfig, ForwardConfig):
    """Options of commands that use the features of an existing network without training it."""

    backbone: str | None = None
    """Name of the network, for a weights file that does not state it."""
    resolution: Side | None = None
    """Side of the views in pixels; by default that of the evaluation view of the network's weights."""


def on_this_rank(options: LoaderOptions, **changes: Any) -> LoaderOptions:
    """Return loader options completed for this rank and its device; the process group must exist."""
    from accelerate import PartialState

    state = PartialState()
    changes |= {"rank": state.process_index, "num_ranks": state.num_processes}
    return on_device(options, str(state.device), **changes)


def on_device(options: LoaderOptions, device: str, **changes: Any) -> LoaderOptions:
    """Return loader options completed for a network on a device.

    Unless given, the number of threads is this rank's share of the cores, or two if the network itself
    computes on the CPU.
    """
    threads = options.num_threads
    if threads is None:
        threads = _THREADS_BESIDE_A_NETWORK if device == "cpu" else cores_per_rank()
    return replace(options, device=device, channels_last=True, num_threads=threads, **changes)


@dataclass(frozen=True, kw_only=True)
class RunConfig(PackConfig, OptimizerOptions, PresetOptions):
    """Options of most recipes; a recipe's Config inherits them and adds its paper's.

    A recipe redeclares `backbone`, `resolution`, `epochs` and `batch_size` with its paper's defaults and
    their sources.
    """

    out: Path
    """Run folder for configuration, metrics.jsonl, checkpoints and weights; a new one unless --resume."""
    backbone: str
    """Name of the network: one of timm's or of this project's."""
    resolution: Side
    """Side of the views in pixels."""
    epochs: Count
    """Passes over the split."""
    batch_size: Count
    """Images per step over all ranks."""
    seed: int = 0
    """Seed of the weights, the order of images and the views."""
    resume: bool = False
    """Continue from the newest undamaged checkpoint in --out; start anew if there is none."""
    precision: Precision = "auto"
    """Precision of autocast. auto: bf16 if the GPU or the processor (AVX-512 BF16, AMX) has it in hardware,
    fp16 on older GPUs, none on other processors; config.json keeps the choice, and a resume uses it."""
    device: Device = "auto"
    """Where the networks compute. auto: the GPU if there is one, else the processor; cpu: the processor;
    cuda: the GPU, or an error if there is none. A resumed run may use another device."""
    log_every: Count = 10
    """Steps between log lines."""
    checkpoint_every_steps: Count = 500
    """Steps between checkpoints; there is one at the end of the run too."""
    keep_checkpoints: Count = 3
    """Number of newest checkpoints to keep."""
    on_non_finite: OnNonFinite = "stop"
    """What to do at a NaN or infinite loss or gradient: stop the run, or skip the step. With skip, every step
    waits for the device."""
    steps: Count | None = None
    """Length of the run and of its schedule in steps, instead of --epochs; in a command of several phases,
    the length of each phase."""
    max_steps: Count | None = None
    """End early after this many steps; the schedule stays that of the whole run."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers to which accelerate also logs, such as tensorboard or wandb; may be empty."""
    progress: bool = True
    """Show progress."""
    compile: bool = False
    """Compile the backbone (torch.compile). It takes a minute at the start and pays off in long runs on a
    GPU. Weights keep their names, and a resumed run may turn it on or off."""
    measure: Measure = "training"
    """training: an ordinary run. Two values measure speed. turns: one batch is repeated throughout every
    second log window; loader: the run has no model."""
    probe_every_epochs: int = 0
    """Epochs between measurements of kNN and a linear probe on frozen features; 0: none. The labels used
    affect no gradient; probe.jsonl states the seconds that each measurement took."""
    probe_splits: tuple[str, ...] = ("train",)
    """Labelled split for the probe, of which a fifth is held out to measure on; or two splits, the first to
    learn from and the second to measure on. Make no choices by a test split."""
    allow_leak: bool = False
    """Run even if the run learns from labels of images that it is measured on, or of copies of these images;
    the entry `leaks` of config.json then describes the shared images."""
    loader: LoaderField = DEFAULT_LOADER
    """How the loaders work."""

    compares_pixels: ClassVar[bool] = False
    """Whether the recipe compares its output with the pixels of views, which then keep size and float32."""

    def __post_init__(self) -> None:
        """Refuse unfit values and combinations; a recipe with further checks calls this too."""
        check_numbers(self)
        self.check_optimizer()
        if self.compares_pixels and self.start_resolution is not None:
            raise UserError(
                "start_resolution: expected none, since this recipe compares images with its views, whose "
                f"size must not change, found {self.start_resolution}; leave it out"
            )
        if len(self.probe_splits) not in (1, 2):
            raise UserError(
                f"probe_splits: expected one or two splits, found {len(self.probe_splits)}; change them"
            )
        for option in ("batch_size", "micro_batch"):
            if getattr(self, option) == 1:
                raise UserError(
                    f"{option}: expected 2 or more, since BatchNorm averages over them, found 1; raise it"
                )
        check_trackers(self.trackers)
        if self.preset == "paper":  # other presets change the sizes first
            self.check_sizes()

    def check_sizes(self) -> None:
        """Refuse sizes that do not fit together; called once they are final.

        Raises:
            UserError: `start_resolution` is not below `resolution`.
        """
        if self.start_resolution is not None and self.start_resolution >= self.resolution:
            raise UserError(
                f"start_resolution: expected less than --resolution ({self.resolution}), up to which views "
                f"grow, found {self.start_resolution}; lower it or leave it out"
            )

    def check_places(self) -> None:
        """Also refuse an unfit run folder, a batch larger than the split, and sizes that do not fit together.

        Raises:
            UserError: --out cannot be written; it holds a run and --resume is not given; or it holds another
                run. See also `check_sizes`, `check_batch` and `PackConfig.check_places`.
        """
        self.check_sizes()
        super().check_places()
        check_folder(self.out)
        manifest, trained = self._manifest(), getattr(self, "split", None)
        for split in manifest.splits if manifest else ():
            if split.name == trained:
                check_batch(split.num_images, self.batch_size)
        if not (self.out / "config.json").is_file():
            return
        if self.resume:
            check_given(self, RUNTIME_FIELDS)
        else:
            raise UserError(
                f"run folder: {self.out} already holds a run; add --resume to continue it, or give another "
                "--out"
            )

    @property
    def evaluation_view(self) -> EvaluationView:
        """The view in which the run is measured and in which its weights predict."""
        return EvaluationView.usual(self.resolution)

    @property
    def origin(self) -> Origin | None:
        """The origin of third-party weights from which the run starts; None if there are none."""
        return None

    def loop_config(self) -> LoopConfig:
        """Return the options of the loop for this run."""
        from engine.nets.description import describe_origin
        from engine.train.loop_config import LoopConfig

        return LoopConfig(
            **{f.name: getattr(self, f.name) for f in fields(LoopConfig) if hasattr(self, f.name)},
            optimizing=OptimizerOptions(**{f.name: getattr(self, f.name) for f in fields(OptimizerOptions)}),
            config=described(self),
            runtime_fields=RUNTIME_FIELDS,
            backbone_metadata={"view": asdict(self.evaluation_view), **describe_origin(self.origin)},
        )

    def loader_options(self) -> LoaderOptions:
        """Return the options of every loader of the run on this rank; the process group must exist."""
        return on_this_rank(self.settled_loader(), seed=self.seed)

    def settled_loader(self) -> LoaderOptions:
        """Return the loader options, with backend `auto` replaced by the one recorded in --out, if any."""
        from engine.train import autocast

        return replace(self.loader, backend=autocast.backend_of(self.loader.backend, self.pack, self.out))

    def training_options(self) -> LoaderOptions:
        """Return the options of the training loader; the Accelerator must exist.

        On a GPU the views are usually already rounded as autocast would round them before the network's first
        product. This halves the bytes to render and copy, and changes no bit of that product.
        """
        from accelerate.state import AcceleratorState

        from engine.train import autocast

        options = self.loader_options()
        exact = self.compares_pixels or self.start_resolution is not None  # targets, or resized later
        precision = "no" if exact else AcceleratorState().mixed_precision
        return replace(options, dtype=autocast.dtype_of_views(precision, options.device, self.out))

    def account(self, division: Division | None = None) -> Account:
        """Return leaks between the online probe's splits, and notes on training images that it measures on.

        Args:
            division: the labels to train on and to validate on, for recipes with labels.

        Raises:
            UserError: the splits share images, and `allow_leak` is off.
        """
        from engine.labels.shared_images import Account, account_of_probe

        return account_of_probe(self) if self.probe_every_epochs else Account()


@dataclass(frozen=True)
class StartConfig(RunConfig):
    """Options of recipes whose backbone may start from existing weights."""

    init: Path | None = None
    """Weights to start from: a run folder, one of its checkpoints, timm:NAME, hf:REPO, or a weights file
    (.safetensors, .pth, .pt, .bin), see docs/pretrained.md; random ones by default."""

    @property
    def evaluation_view(self) -> EvaluationView:
        """The view in which the run is measured; with --init, the view that fits those weights."""
        from engine.nets.starts import find_start

        if self.init is None:
            return super().evaluation_view
        return find_start(self.init, self.backbone).view_at(self.resolution)

    @property
    def origin(self) -> Origin | None:
        """The origin of third-party weights from which this run, or one before it, started."""
        from engine.nets.starts import find_start

        return None if self.init is None else find_start(self.init, self.backbone).origin


def described(config: Any) -> dict[str, Any]:
    """Return a configuration in JSON types, for files; the credentials of a store are left out.

    Keys are added where they apply: `origin` names third-party weights from which the run starts, and their
    licence; `init_weights` is a digest of the weights at `init`, so that a resume notices replaced weights;
    `taken_backend` is the backend of the run, never `auto`.
    """
    content = asdict(config)
    if isinstance(config, RunConfig):
        from engine.train.autocast import BACKEND

        asked = config.settled_loader().backend
        content[BACKEND] = usual_backend(as_url(str(config.pack)))[0] if asked == "auto" else asked
    if isinstance(config, RunConfig) and config.origin is not None:
        content["origin"] = asdict(config.origin)
    if isinstance(config, StartConfig) and config.init is not None:
        from engine.nets.starts import weights_digest

        content["init_weights"] = weights_digest(config.init)
    if isinstance(config, ValidationOptions):
        content["keep"] = config.keep or "last"  # as in older runs; `run` may choose "best" for None
    content["loader"]["store"].pop("filesystem")
    found: dict[str, Any] = parse_json(to_json(content))
    return found
