r"""The whole pipeline of the winning report, stage after stage, with a table of test accuracies.

Example:
    python recipes/pipeline.py --pack packs/mine --backbone resnet50 --resolution 96 --oracle --out runs/all

scratch (labels alone, as a baseline); pretrain (Barlow Twins) -> fine_tune -> rounds (balanced pseudo-labels)
-> fixmatch -> active (more labels) -> tta (augmented tests). ablation.csv and ablation.png show the results.

The same command, given again, continues where it stopped, even inside a stage. `--skip` leaves stages out.
Without `--oracle` the active stage writes OUT/active/request.html and stops. Label on that page, turn the
saved file into a table by `recipes/active.py --pack PACK --filled request.csv --out OUT/active`, and give the
command again. All stages run in one process; to use several GPUs, run the recipes of the stages one by one.

Source: Zhou, Wan, Li 2021, "Semi-supervised Learning Competition Report", table 2: 46.6 % after pre-training
and fine-tuning, 52.4 after the rounds, 54.5 with FixMatch, 56.1 with more labels, 57.5 with augmented tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from engine.choices import Device, Precision
from engine.train.classifier_config import ClassifierConfig
from engine.train.options import PresetOptions
from engine.train.run_config import DEFAULT_LOADER, LoaderField, PackConfig, RunConfig
from engine.train.stage_config import Ask, FineTune, Pretrain, Rounds, SemiSupervised
from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line

Stage = Literal["scratch", "pretrain", "fine_tune", "rounds", "fixmatch", "active", "tta"]


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig, PresetOptions):
    """Run all stages on one pack and measure their classifiers."""

    out: Path
    """Folder for the results of all stages; stages that were begun there are continued."""
    backbone: str = "resnet50"
    """Any timm name, or tiny_resnet for a CPU. Report: resnet50."""
    resolution: Count = 96
    """Side length of the views in pixels. Report: 96."""
    init: Path | None = None
    """Network that replaces pre-training, or starts it (--pretrain.from-init); see docs/pretrained.md."""
    labeled_split: str = "train"
    """Split whose true labels are used; if it is "" or has no labels, --extra-labels alone are used."""
    labels_per_class: int | None = None
    """Use only this many labels per class, of --labeled-split or, if it has none, of --extra-labels; all by
    default."""
    extra_labels: tuple[Path, ...] = ()
    """Label tables for all stages with labels. An image keeps its true label, else the first table's."""
    unlabeled_split: str = "unlabeled"
    """Split of the images without labels."""
    test_split: str = "test"
    """Labelled split to measure on."""
    allow_leak: bool = False
    """Run even if labels of --test-split or of copies of its images are trained on; results list leaks."""
    seed: int = 0
    """Seed of the weights, the order, the views and the choice of labels."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning."""
    skip: tuple[Stage, ...] = ()
    """Stages to leave out; each stage starts from the last one before it that ran, not counting scratch."""
    oracle: bool = False
    """Read the labels of the active stage from the pack's own table, for experiments."""
    sizes: tuple[Count, ...] = (96, 144, 192)
    """Side lengths in pixels of the views of the test-time augmentation. Report: 96 144 192."""
    flips: bool = False
    """Test-time augmentation: also mirror every view left to right."""
    pretrain: Pretrain = field(default_factory=Pretrain)
    """Barlow Twins on the unlabelled images."""
    fine_tune: FineTune = field(default_factory=FineTune)
    """Training on the true labels (fine_tune and scratch); the rounds use some of these options too."""
    rounds: Rounds = field(default_factory=Rounds)
    """Rounds of balanced pseudo-labels."""
    fixmatch: SemiSupervised = field(default_factory=SemiSupervised)
    """FixMatch, both before and after the active labels."""
    ask: Ask = field(default_factory=Ask)
    """Choice of the images to label in the active stage."""
    precision: Precision = "auto"
    """Autocast of every training, see recipes/supervised.py."""
    device: Device = "auto"
    """Device of all stages, see recipes/supervised.py; --preset auto depends on it."""
    progress: bool = True
    """Show progress."""
    loader: LoaderField = DEFAULT_LOADER
    """Options of the data loaders."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, an unfit --out, and --pretrain.from-init without --init."""
        check_numbers(self)
        check_folder(self.out)
        if self.pretrain.from_init and self.init is None:
            raise UserError("pretrain.from_init: expected --init to start from, found none; give one of them")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.labels.decided import is_made, keep_options
from engine.nets.classifier import has_classifier
from engine.report.ablation import Measured, draw_ablation, print_ablation, write_ablation
from engine.report.other_pages import build_page
from engine.report.run_page import PageOptions, leave_page
from engine.train.autocast import as_begun
from engine.train.bad_rows import describe_bad_rows
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import refuse_ranks
from engine.train.run_config import described
from engine.train.run_folder import say_next_of_run
from loaders import open_pack
from loaders.classification import chosen_labels
from loaders.packs import Pack
from loaders.packs.labels.leaks import shared_rows
from loaders.packs.labels.subsample import training_labels

# Only this recipe imports other recipes: it chains them.
from recipes import active, barlow, evaluate, fixmatch, self_training, supervised

RunT = TypeVar("RunT", bound=RunConfig)
ClassifierT = TypeVar("ClassifierT", bound=ClassifierConfig)
TITLES: dict[str, str] = {
    "scratch": "labels alone, from scratch",
    "fine_tune": "pre-training and fine-tuning",
    "rounds": "pseudo-label rounds",
    "fixmatch": "FixMatch",
    "active": "active labels",
    "tta": "test-time augmentation",
}


class Chain:
    """The state that stages share: `best`, the run from which the next stage starts, and the accuracies."""

    def __init__(self, config: Config) -> None:
        """Begin with --init, if it is given."""
        self.config = config
        self.best = self.pretrained = config.init
        self.measured: list[Measured] = []

    @property
    def has_classifier(self) -> bool:
        """Whether the run to start the next stage from has a classifier."""
        return self.best is not None and has_classifier(self.best)

    def begin(self, kind: type[RunT], out: str, epochs: int, batch_size: int) -> RunT:
        """Return a recipe's configuration: its defaults, and the options that all trainings share."""
        config = self.config
        return kind(
            pack=config.pack, out=config.out / out, backbone=config.backbone, resolution=config.resolution,
            epochs=epochs, batch_size=batch_size, seed=config.seed, precision=config.precision,
            device=config.device, loader=config.loader, progress=config.progress, resume=True, trackers=(),
        )  # fmt: skip

    def begin_labelled(self, kind: type[ClassifierT], out: str, epochs: int, batch_size: int) -> ClassifierT:
        """Return the configuration of a recipe with labels: `begin`'s, and the labels and the test split."""
        config = self.config
        return replace(
            self.begin(kind, out, epochs, batch_size),
            labeled_split=config.labeled_split,
            labels_per_class=config.labels_per_class,
            label_seed=config.seed,
            extra_labels=config.extra_labels,
            test_split=config.test_split,
            allow_leak=config.allow_leak,
            flip_p=config.flip_p,
        )

    def measure(self, stage: Stage, run: Path) -> None:
        """Record a stage's test accuracy: that of the averaged weights if its run has them."""
        found = read_accuracy(run)
        self.measured.append(Measured(stage, found.get("ema", found["raw"]).top1))


def scratch_config(chain: Chain, out: str = "scratch") -> supervised.Config:
    """Return the options of training on the labels alone."""
    stage = chain.config.fine_tune
    shared = chain.begin_labelled(supervised.Config, out, stage.epochs, stage.batch_size)
    return replace(shared, lr=stage.lr, min_crop=stage.min_crop)


def scratch(chain: Chain) -> None:
    """Train on the labels alone, as the baseline of all other stages."""
    chain.measure("scratch", supervised.run(scratch_config(chain)).out)


def pretrain_config(chain: Chain) -> barlow.Config:
    """Return the options of the pre-training."""
    stage = chain.config.pretrain
    return replace(
        chain.begin(barlow.Config, "pretrain", stage.epochs, stage.batch_size),
        init=chain.best,
        split=chain.config.unlabeled_split,
        flip_p=chain.config.flip_p,
        projector=stage.projector,
        min_crop=stage.min_crop,
        warmup_epochs=stage.warmup_epochs,
        lr_weights=stage.lr_weights,
    )


def pretrain(chain: Chain) -> None:
    """Pre-train on the unlabelled images."""
    barlow.run(pretrain_config(chain))
    chain.best = chain.pretrained = chain.config.out / "pretrain"


def fine_tune_config(chain: Chain) -> supervised.Config:
    """Return the options of fine-tuning `chain.best`."""
    start = None if chain.best is None else chain.config.fine_tune.classifier_start
    tuned = scratch_config(chain, "fine-tune")
    return replace(tuned, init=chain.best, weight_decay=0.0, classifier_start=start)


def fine_tune(chain: Chain) -> None:
    """Fine-tune on the true labels."""
    chain.best = supervised.run(fine_tune_config(chain)).out
    chain.measure("fine_tune", chain.best)


def rounds_config(chain: Chain) -> self_training.Config:
    """Return the options of the rounds."""
    stage, first = chain.config.rounds, chain.config.fine_tune
    return replace(
        chain.begin_labelled(self_training.Config, "rounds", stage.epochs, first.batch_size),
        unlabeled_splits=(chain.config.unlabeled_split,),
        init=chain.best,
        per_class=stage.per_class,
        top_k=stage.top_k,
        true_epochs=stage.true_epochs,
        first_epochs=first.epochs,
        lr=first.lr,
        min_crop=first.min_crop,
    )


def rounds(chain: Chain) -> None:
    """Go through the rounds of pseudo-labels."""
    self_training.run(rounds_config(chain))
    chain.best = chain.config.out / "rounds"
    chain.measure("rounds", chain.best)


def both_splits(config: Config) -> tuple[str, ...]:
    """Return the splits that FixMatch uses as unlabelled images: the labelled, if any, and the unlabelled."""
    return tuple(split for split in (config.labeled_split, config.unlabeled_split) if split)


def fixmatch_config(chain: Chain, out: str, extra_labels: tuple[Path, ...]) -> fixmatch.Config:
    """Return the options of FixMatch, starting from `chain.best`."""
    stage = chain.config.fixmatch
    return replace(
        chain.begin_labelled(fixmatch.Config, out, stage.epochs, stage.batch_size),
        unlabeled_splits=both_splits(chain.config),
        extra_labels=(*chain.config.extra_labels, *extra_labels),
        init=chain.best,
        keep_head=chain.has_classifier,
        lr=stage.lr,
        mu=stage.mu,
        threshold=stage.threshold,
        ema_decay=stage.ema_decay,
        strong=stage.strong,
    )


def semi_supervised(chain: Chain, stage: Stage, out: str, extra_labels: tuple[Path, ...]) -> None:
    """Train with FixMatch, from `chain.best` if it is set, and measure the result."""
    chain.best = fixmatch.run(fixmatch_config(chain, out, extra_labels)).out
    chain.measure(stage, chain.best)


def fixmatch_stage(chain: Chain) -> None:
    """Add the surest pseudo-labels of each class, if there is a classifier, and train with FixMatch."""
    semi_supervised(chain, "fixmatch", "fixmatch", (pseudo_labels(chain),) if chain.has_classifier else ())


def pseudo_labels(chain: Chain) -> Path:
    """Label, for each class, the images of which `chain.best` is surest, once; return the table's path."""
    config, path = chain.config, chain.config.out / "fixmatch-labels.parquet"
    assert chain.best is not None
    pool, per_class, top_k = (config.unlabeled_split,), config.fixmatch.pseudo_per_class, config.rounds.top_k
    used = {"--fixmatch.pseudo-per-class": per_class, "--rounds.top-k": top_k, "--skip": chain.best.name}
    if is_made(path, used):
        return path
    pack = open_pack(config.pack, config.loader.store)
    choice = (top_k, per_class, config.out, config.device)
    table = self_training.surest_labels(chain.best, pack, pool, config.loader, *choice)
    # A test image must not be trained on, not even with a guessed label.
    own, copies = shared_rows(pack, table.row, pack.split(config.test_split))
    keep_options(path, used)
    pack.signed(table.of_rows(table.row[~(own | copies)])).write(path)
    return path


def active_stage(chain: Chain) -> None:
    """Get labels for the images of which `chain.best` is least sure, and train with FixMatch."""
    config, bought = chain.config, chain.config.out / "active" / "bought.parquet"
    if chain.best is None or not chain.has_classifier:
        raise UserError("active: expected a stage with labels before it, found none; skip fewer stages")
    ask = {f"--ask.{name.replace('_', '-')}": number for name, number in asdict(config.ask).items()}
    used = {**ask, "--oracle": config.oracle, "--skip": chain.best.name}
    if not is_made(bought, used):
        keep_options(bought, used)
        active.run(
            active.Config(
                pack=config.pack,
                out=bought.parent,
                run=chain.best,
                init=chain.pretrained,
                backbone=config.backbone,
                oracle=config.oracle,
                **asdict(config.ask),
                labeled_split=config.labeled_split,
                labels_per_class=config.labels_per_class,
                label_seed=config.seed,
                extra_labels=config.extra_labels,
                unlabeled_splits=(config.unlabeled_split,),
                test_split=config.test_split,
                seed=config.seed,
                device=config.device,
                loader=config.loader,
            )
        )
    if not bought.is_file():
        raise UserError(
            f"active: label on {bought.parent / 'request.html'}, run recipes/active.py --filled on what it "
            f"saves with --out {bought.parent}, then this command again"
        )
    semi_supervised(chain, "active", "active-fixmatch", (bought,))


def tta(chain: Chain) -> None:
    """Measure `chain.best` by test-time augmentation."""
    config = chain.config
    if chain.best is None or not chain.has_classifier:
        raise UserError("tta: expected a stage with labels before it, found none; skip fewer stages")
    _, report = evaluate.evaluate(
        evaluate.Config(
            run=chain.best,
            pack=config.pack,
            out=config.out / "tta",
            split=config.test_split,
            sizes=config.sizes,
            flips=config.flips,
            device=config.device,
            loader=config.loader,
            allow_leak=config.allow_leak,
        )
    )
    assert report is not None
    chain.measured.append(Measured("tta", report.top1))


STAGES: dict[Stage, Callable[[Chain], None]] = {
    "scratch": scratch,
    "pretrain": pretrain,
    "fine_tune": fine_tune,
    "rounds": rounds,
    "fixmatch": fixmatch_stage,
    "active": active_stage,
    "tta": tta,
}


def check(config: Config) -> None:
    """Check the options of every stage before the first stage runs for hours.

    Raises:
        UserError: an option of some stage does not fit.
    """
    pack = open_pack(config.pack, config.loader.store)
    pack.require_one_label()
    for split in (*both_splits(config), config.test_split):
        pack.split(split)
    chain = Chain(config)
    chosen_labels(pack, scratch_config(chain))
    for describe in (scratch_config, pretrain_config, fine_tune_config, rounds_config):
        describe(chain)
    fixmatch_config(chain, "fixmatch", ())
    check_sizes(config, pack)


def check_sizes(config: Config, pack: Pack) -> None:
    """Refuse sizes for which the pack has too few images, and --oracle without a label for each image.

    Raises:
        UserError: a stage needs more images than the pack has, or labels are missing.
    """
    few = (config.labeled_split, config.labels_per_class, config.seed, config.extra_labels)
    unlabeled, known = pack.split(config.unlabeled_split), training_labels(pack, *few)
    open_labels = unlabeled.labels()[unlabeled.labels(known) < 0]
    both, per_step = len(pack.pool(both_splits(config))), config.fixmatch.mu * config.fixmatch.batch_size
    of_fixmatch = (per_step, both, "images per step; lower --fixmatch.batch-size or --fixmatch.mu")
    pretrain, ask = config.pretrain.batch_size, config.ask.clusters
    for stage, size, most, remedy in (
        ("pretrain", pretrain, len(unlabeled), "images per step; lower --pretrain.batch-size"),
        ("fixmatch", *of_fixmatch),
        ("active", *of_fixmatch),
        ("active", ask, len(open_labels), "clusters, an image without a label each; lower --ask.clusters"),
    ):
        if stage not in config.skip and size > most:
            raise UserError(f"{stage}: expected at most {most} and found {size} {remedy}")
    if config.oracle and "active" not in config.skip and (open_labels < 0).any():
        raise UserError(
            f"oracle: expected a label of every image of {config.unlabeled_split!r}, found "
            f"{(open_labels < 0).sum()} without; leave out --oracle"
        )


def run(config: Config) -> list[Measured]:
    """Run the stages that are not skipped, in order; after each, write the table of accuracies."""
    refuse_ranks("pipeline")
    replaced: tuple[Stage, ...] = ("pretrain",) if config.init and not config.pretrain.from_init else ()
    config = as_begun(replace(config, out=config.out.absolute(), skip=(*config.skip, *replaced)))
    check(config)
    chain = Chain(config)
    try:
        for stage, function in STAGES.items():
            if stage not in config.skip:
                function(chain)
                write_ablation(config.out, chain.measured, TITLES, described(config))
    finally:  # also when the active stage stops for labels; only once, since drawing takes half a second
        draw_ablation(config.out, chain.measured, TITLES)
    return chain.measured


def main() -> None:
    """Parse the command line and run the command."""
    config = command_line(Config, __doc__)
    print_ablation(Console(), run(config), TITLES, apart="scratch")
    print(f"pipeline: results{describe_bad_rows(config.out)} -> {config.out}")
    leave_page(config.out, lambda: build_page(PageOptions(config.out)))
    say_next_of_run(config.out)


if __name__ == "__main__":
    run_command(main)
