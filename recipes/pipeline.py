r"""The whole pipeline of the winning report: each stage goes on from the one before and is measured.

Example:
    python recipes/pipeline.py --pack packs/mine --backbone resnet50 --resolution 96 --oracle --out runs/all

pretrain (Barlow Twins) -> fine_tune -> rounds (balanced pseudo-labels) -> fixmatch -> active (more labels)
-> tta, ending in ablation.csv and ablation.png: what each stage brought on this pack, for better or worse.

The same command again goes on where it stopped, also inside a stage. `--skip` leaves stages out. Without
`--oracle` the active stage writes OUT/active/request.csv and stops; fill in its labels, turn it into a table
by `recipes/active.py --pack PACK --filled OUT/active/request.csv --out OUT/active`, and give the command
again. All in one process: with several GPUs launch the stages by themselves, with the folders that the
pipeline would give them.

Source: Zhou, Wan, Li 2021, "Semi-supervised Learning Competition Report", table 2: 46.6 % after pre-training
and fine-tuning, 52.4 % after the rounds, 54.5 % with FixMatch, 56.1 % with more labels, 57.5 % with
test-time augmentation.

The chain is `run`; every stage is the function of its own recipe.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.choices import Precision
from engine.train.run_config import LoaderField, default_loader
from loaders.common.errors import check_numbers, run_command
from loaders.common.program import check_command_line, command_line

Stage = Literal["scratch", "pretrain", "fine_tune", "rounds", "fixmatch", "active", "tta"]


@dataclass(frozen=True)
class Pretrain:
    """Stage 1: Barlow Twins on the unlabelled images."""

    epochs: int = 1000
    """Passes over the unlabelled images. Report: 1000."""
    batch_size: int = 512
    """Images per step over all ranks. Report: not stated."""
    projector: tuple[int, ...] = (8192, 8192, 8192)
    """Output sizes of the projector's layers. Report: 8192 8192 8192."""
    min_crop: float = 0.08
    """Smallest share of the image that a view shows. Paper: 0.08."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate rises linearly; fewer than --pretrain.epochs. Paper: 10."""
    lr_weights: float | Literal["auto"] = "auto"
    """Peak learning rate of weights for 256 images, see recipes/barlow.py. Report: 0.5, without saying for
    how many images; auto: by the authors' table of batch sizes, which has 0.3 at 512."""


@dataclass(frozen=True)
class FineTune:
    """Stage 2: training on the true labels alone, also from scratch for comparison."""

    epochs: int = 40
    """Passes over the labelled images. Report: 40."""
    batch_size: int = 256
    """Images per step over all ranks, in stages 2 and 3. Report: not stated."""
    lr: float = 0.05
    """Peak learning rate, in stages 2 and 3. Report: 0.05."""
    min_crop: float = 0.08
    """Smallest share of the image that a view shows."""


@dataclass(frozen=True)
class Rounds:
    """Stage 3: rounds of balanced pseudo-labels, see recipes/self_training.py."""

    per_class: tuple[int, ...] = (200, 300, 400, 500)
    """Images per class that each round labels. Report: 200 300 400 500."""
    top_k: int = 10
    """Classes that an image may stand under. Report: 10."""
    epochs: int = 40
    """Passes over pseudo and true labels, per round. Report: not stated."""
    true_epochs: int = 40
    """Passes over the true labels afterwards, per round. Report: not stated."""


@dataclass(frozen=True)
class SemiSupervised:
    """Stage 4, and again after the labels of stage 5: FixMatch, see recipes/fixmatch.py."""

    epochs: int = 40
    """Passes over the unlabelled images. Report: 40."""
    lr: float = 0.01
    """Peak learning rate. Report: 0.01."""
    batch_size: int = 64
    """Labelled images per step over all ranks. Paper: 64."""
    mu: int = 7
    """Unlabelled images per labelled one. Paper: 7."""
    threshold: float = 0.95
    """Least probability of a guess to count. Paper: 0.95."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which is measured and kept, after its warm-up. Report: 0.999."""
    strong: Literal["fixmatch", "gentle"] = "fixmatch"
    """Strong view: the paper's, or one with smaller magnitudes."""
    pseudo_per_class: int = 16
    """Pseudo-labels of each class that count as true ones. Report: 16. Their images stay among the unlabelled
    ones, as labelled images do in FixMatch's paper; the report takes them out."""


@dataclass(frozen=True)
class Ask:
    """Stage 5: labels bought for the images that would tell most, see recipes/active.py."""

    clusters: int = 200
    """Clusters of k-means. Report: 200."""
    per_cluster: int = 64
    """Images of each cluster. Report: 64."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run all stages on one pack and measure each."""

    pack: Path
    """Folder that tools/pack_dataset.py wrote."""
    out: Path
    """Folder of all stages; what it holds already is gone on with."""
    backbone: str = "resnet50"
    """Any timm name, or tiny_resnet for a CPU. Report: resnet50."""
    resolution: int = 96
    """Side of the views in pixels. Report: 96."""
    labeled_split: str = "train"
    """Split whose true labels are used; where it is "" or has none, --extra-labels are all."""
    labels_per_class: int | None = None
    """Use only so many of those labels per class, or of --extra-labels where these are all; else all."""
    extra_labels: tuple[Path, ...] = ()
    """Label tables to train on besides, in every stage. The first label of a row counts."""
    unlabeled_split: str = "unlabeled"
    """Split of the images without labels."""
    test_split: str = "test"
    """Labelled split to measure on."""
    allow_leak: bool = False
    """Train on labels of that split, or of copies of its images, all the same; each stage's config.json then
    names them under leaks."""
    seed: int = 0
    """Seed of the weights, the order, the views and the choice of labels."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; 0 where left and right carry meaning."""
    skip: tuple[Stage, ...] = ()
    """Stages to leave out; the next goes on from the last that ran."""
    oracle: bool = False
    """Take the active labels from the pack's own table, for experiments."""
    sizes: tuple[int, ...] = (96, 144, 192)
    """Sides of the views of the test-time augmentation. Report: 96 144 192."""
    flips: bool = False
    """Test-time augmentation: also mirror every view left to right."""
    pretrain: Pretrain = field(default_factory=Pretrain)
    """Barlow Twins on the unlabelled images."""
    fine_tune: FineTune = field(default_factory=FineTune)
    """Training on the true labels."""
    rounds: Rounds = field(default_factory=Rounds)
    """Rounds of balanced pseudo-labels."""
    fixmatch: SemiSupervised = field(default_factory=SemiSupervised)
    """FixMatch, before and after the bought labels."""
    ask: Ask = field(default_factory=Ask)
    """Labels to buy."""
    precision: Precision = "auto"
    """Autocast of every training: auto is bf16 where the GPU or the processor has it in hardware."""
    progress: bool = True
    """Show progress."""
    loader: LoaderField = field(default_factory=default_loader)
    """How the loaders work."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no run."""
        check_numbers(self, ("resolution", "sizes"))


if __name__ == "__main__":  # before the imports that take seconds
    check_command_line(Config, __doc__)


import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.nets.classifier import best_weights, find_classifier
from engine.report.figures import draw_steps, save_picture
from engine.train.bad_rows import describe_bad_rows
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import refuse_ranks
from engine.train.run_config import described
from loaders import open_pack
from loaders.classification import build_pool_loader, chosen_labels
from loaders.common.errors import UserError
from loaders.common.files import check_folder, to_json, write_atomic
from loaders.packs import Pack
from loaders.packs.labels.leaks import shared_rows
from loaders.packs.labels.subsample import training_labels

# The one recipe that is made of others.
from recipes import active, barlow, evaluate, fixmatch, self_training, supervised

TITLES: dict[str, str] = {
    "scratch": "labels alone, from scratch",
    "fine_tune": "pre-training and fine-tuning",
    "rounds": "pseudo-label rounds",
    "fixmatch": "FixMatch",
    "active": "active labels",
    "tta": "test-time augmentation",
}


@dataclass(frozen=True)
class Measured:
    """Test accuracy after a stage, in [0, 1]."""

    stage: Stage
    top1: float


class Chain:
    """What the stages hand on: the best run so far, and what was measured."""

    def __init__(self, config: Config) -> None:
        """Begin without a run."""
        self.config = config
        self.best: Path | None = None
        self.pretrained: Path | None = None
        self.bought: tuple[Path, ...] = ()
        self.measured: list[Measured] = []

    @property
    def has_classifier(self) -> bool:
        """Whether the best run so far was trained on labels."""
        return self.best is not None and best_weights(self.best) is not None

    def common(self, out: str) -> dict[str, Any]:
        """Return the fields that the configurations of all trainings share."""
        names = ("pack", "backbone", "resolution", "seed", "flip_p", "precision", "loader")
        shared = {name: getattr(self.config, name) for name in names}
        shared |= {"out": self.config.out / out, "progress": self.config.progress}
        return shared | {"resume": True, "trackers": ()}

    def labels(self) -> dict[str, Any]:
        """Return the fields that say which true labels are known and where to measure."""
        names = ("labeled_split", "labels_per_class", "extra_labels", "test_split", "allow_leak")
        chosen = {name: getattr(self.config, name) for name in names}
        return chosen | {"label_seed": self.config.seed}

    def measure(self, stage: Stage, run: Path) -> None:
        """Note the accuracy of a training."""
        found = read_accuracy(run)
        self.measured.append(Measured(stage, found.get("ema", found["raw"]).top1))


def scratch_config(chain: Chain) -> supervised.Config:
    """Return how to train on the labels alone."""
    options = chain.common("scratch") | chain.labels() | asdict(chain.config.fine_tune)
    return supervised.Config(**options)


def scratch(chain: Chain) -> None:
    """Train on the labels alone: what everything else is to be compared with."""
    chain.measure("scratch", supervised.run(scratch_config(chain)).out)


def pretrain_config(chain: Chain) -> barlow.Config:
    """Return how to pre-train."""
    config = chain.config
    options = chain.common("pretrain") | asdict(config.pretrain)
    options["projector"] = config.pretrain.projector
    return barlow.Config(split=config.unlabeled_split, **options)


def pretrain(chain: Chain) -> None:
    """Pre-train on the unlabelled images."""
    barlow.run(pretrain_config(chain))
    chain.best = chain.pretrained = chain.config.out / "pretrain"


def fine_tune_config(chain: Chain) -> supervised.Config:
    """Return how to fine-tune the best run so far."""
    options = chain.common("fine-tune") | chain.labels() | asdict(chain.config.fine_tune)
    options |= {"init": chain.best, "weight_decay": 0.0}
    return supervised.Config(**options)


def fine_tune(chain: Chain) -> None:
    """Fine-tune on the true labels."""
    chain.best = supervised.run(fine_tune_config(chain)).out
    chain.measure("fine_tune", chain.best)


def rounds_config(chain: Chain) -> self_training.Config:
    """Return how the rounds go."""
    config = chain.config
    options = chain.common("rounds") | chain.labels() | asdict(config.rounds)
    options |= {"per_class": config.rounds.per_class, "init": chain.best, "lr": config.fine_tune.lr}
    options |= {"batch_size": config.fine_tune.batch_size, "min_crop": config.fine_tune.min_crop}
    options |= {"first_epochs": config.fine_tune.epochs, "unlabeled_splits": (config.unlabeled_split,)}
    return self_training.Config(**options)


def rounds(chain: Chain) -> None:
    """Go through the rounds of pseudo-labels."""
    self_training.run(rounds_config(chain))
    chain.best = chain.config.out / "rounds"
    chain.measure("rounds", chain.best)


def both_splits(config: Config) -> tuple[str, ...]:
    """Return the splits of FixMatch's unlabelled images: those with labels stand among them."""
    return tuple(split for split in (config.labeled_split, config.unlabeled_split) if split)


def fixmatch_config(chain: Chain, out: str, extra_labels: tuple[Path, ...]) -> fixmatch.Config:
    """Return how FixMatch goes on from the best run so far."""
    config = chain.config
    options = chain.common(out) | chain.labels() | asdict(config.fixmatch)
    del options["pseudo_per_class"]
    options |= {"init": chain.best, "keep_head": chain.has_classifier}
    options |= {"extra_labels": (*config.extra_labels, *extra_labels)}
    options |= {"unlabeled_splits": both_splits(config)}
    return fixmatch.Config(**options)


def semi_supervised(chain: Chain, out: str, extra_labels: tuple[Path, ...]) -> None:
    """Go on with FixMatch from the best run so far."""
    chain.best = fixmatch.run(fixmatch_config(chain, out, extra_labels)).out


def fixmatch_stage(chain: Chain) -> None:
    """Put a few pseudo-labels of each class beside the true ones and train with FixMatch."""
    extra = (pseudo_labels(chain),) if chain.has_classifier else ()
    semi_supervised(chain, "fixmatch", extra)
    assert chain.best is not None
    chain.measure("fixmatch", chain.best)


def pseudo_labels(chain: Chain) -> Path:
    """Select the surest images of each class by the best run so far, once."""
    config = chain.config
    path = config.out / "fixmatch-labels.parquet"
    assert chain.best is not None
    if path.is_file():
        return path
    pack, device = open_pack(config.pack, config.loader.store), "cuda" if torch.cuda.is_available() else "cpu"
    options = replace(config.loader, device=device, channels_last=True)
    splits = (config.unlabeled_split,)
    network = find_classifier(chain.best, pack.classes, every_class=True).to(device)
    loader = build_pool_loader(pack, splits, network.view, options)
    try:
        per_class = config.fixmatch.pseudo_per_class
        selection = self_training.select_balanced(
            network, loader, device, config.rounds.top_k, per_class, config.out
        )
    finally:
        loader.close()
    table = self_training.as_table(selection.one_class_each("best"), 0)
    # What is measured on is no label to train on in a table, even where it was guessed.
    own, copies = shared_rows(pack, table.row, pack.split(config.test_split))
    table.of_rows(table.row[~(own | copies)]).write(path)
    return path


def active_stage(chain: Chain) -> None:
    """Have the images labelled that the best run is least sure of, and go on with FixMatch."""
    config = chain.config
    bought = config.out / "active" / "bought.parquet"
    if chain.best is None or not chain.has_classifier:
        raise UserError("active: expected a stage with labels before it, found none; skip fewer stages")
    if not bought.is_file():
        names = ("loader",)
        options = chain.labels() | {name: getattr(config, name) for name in names}
        del options["allow_leak"]
        active.run(
            active.Config(
                pack=config.pack,
                out=bought.parent,
                run=chain.best,
                init=chain.pretrained,
                oracle=config.oracle,
                clusters=config.ask.clusters,
                per_cluster=config.ask.per_cluster,
                unlabeled_splits=(config.unlabeled_split,),
                seed=config.seed,
                **options,
            )
        )
    if not bought.is_file():
        raise UserError(
            f"active: fill in the labels of {bought.parent / 'request.csv'}, run recipes/active.py --filled "
            f"on it with --out {bought.parent}, then this command again"
        )
    semi_supervised(chain, "active-fixmatch", (bought,))
    chain.measure("active", chain.best)


def tta(chain: Chain) -> None:
    """Measure the best run with views of several sizes."""
    config = chain.config
    if chain.best is None or not chain.has_classifier:
        raise UserError("tta: expected a stage with labels before it, found none; skip fewer stages")
    names = ("pack", "sizes", "flips", "loader", "allow_leak")
    options = {name: getattr(config, name) for name in names}
    tested = evaluate.Config(run=chain.best, out=config.out / "tta", split=config.test_split, **options)
    _, report = evaluate.evaluate(tested)
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
    """Find mistakes of every stage before the first one works for hours.

    Raises:
        UserError: the first.
    """
    check_folder(config.out)
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
    """Refuse what the images and labels of the pack are too few for.

    Raises:
        UserError: more labels per class, images per step, clusters or bought labels than there are.
    """
    few = (config.labeled_split, config.labels_per_class, config.seed, config.extra_labels)
    unlabeled, known = pack.split(config.unlabeled_split), training_labels(pack, *few)
    both = len(pack.pool(both_splits(config)))
    open_labels = unlabeled.labels()[unlabeled.labels(known) < 0]
    per_step = config.fixmatch.mu * config.fixmatch.batch_size
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
    """Run the stages that are not skipped, in their order, and keep the table of what each brought."""
    refuse_ranks("pipeline")
    config = replace(config, out=config.out.absolute())  # stages name each other's folders, however spelled
    check(config)
    chain = Chain(config)
    try:
        for stage, function in STAGES.items():
            if stage not in config.skip:
                function(chain)
                write_ablation(config, chain.measured)
    finally:  # also where the active stage waits for labels; once, since a picture takes half a second
        draw_ablation(config, chain.measured)
    return chain.measured


def write_ablation(config: Config, measured: list[Measured]) -> None:
    """Write ablation.json and ablation.csv of the stages so far."""
    if not measured:
        return
    rows = [asdict(row) for row in measured]
    write_atomic(config.out / "ablation.json", to_json({"config": described(config), "stages": rows}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("stage", "top1_percent"))
    writer.writerows((TITLES[row.stage], f"{100 * row.top1:.2f}") for row in measured)
    write_atomic(config.out / "ablation.csv", text.getvalue().encode())


def draw_ablation(config: Config, measured: list[Measured]) -> None:
    """Draw ablation.png of the stages so far."""
    if not measured:
        return
    names, values = [TITLES[row.stage] for row in measured], [100 * row.top1 for row in measured]
    save_picture(config.out / "ablation.png", draw_steps(names, values, "test accuracy, %"))


def print_ablation(console: Console, measured: list[Measured]) -> None:
    """Print what every stage came to and what it changed."""
    table = Table("stage", "top-1, %", "change")
    chained = [row for row in measured if row.stage != "scratch"]
    for row in measured:
        place = chained.index(row) if row in chained else 0
        change = f"{100 * (row.top1 - chained[place - 1].top1):+.2f}" if place > 0 else ""
        table.add_row(TITLES[row.stage], f"{100 * row.top1:.2f}", change)
    console.print(table)


def main() -> None:
    """Run the command line."""
    config = command_line(Config, __doc__)
    print_ablation(Console(), run(config))
    print(f"pipeline: results{describe_bad_rows(config.out)} -> {config.out}")


if __name__ == "__main__":
    run_command(main)
