"""The methods of both families of tools/compare_methods.py, and their settings at a budget of minutes.

Settings were chosen beforehand; all others are the recipes' defaults. Warm-ups and learning-rate steps are
shares of the run; ramps and averages are shorter than in the papers. Batch sizes allow hundreds of steps, and
crops show enough of a small image. Views of 16 pixels cost a quarter of views of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BACKBONE, RESOLUTION = "tiny_resnet", 16
PROJECTOR = ("--projector", "512", "512", "512")


@dataclass(frozen=True)
class Command:
    """One of the project's scripts and its arguments."""

    script: str
    arguments: tuple[str, ...]


def command(script: str, *arguments: object) -> Command:
    """Return a command with its arguments converted to text."""
    return Command(script, tuple(str(argument) for argument in arguments))


@dataclass(frozen=True)
class Pretraining:
    """A self-supervised method.

    Attributes:
        recipe: file name in recipes/, without suffix.
        metric: metric of the pretext task: its key in metrics.jsonl and its name in the table.
        settings: arguments that do not depend on the length of the run.
        paced: returns the arguments that depend on the length of the run, given its epochs.
        epochwise: whether the method does costly work before every epoch.
    """

    recipe: str
    title: str
    batch_size: int
    metric: tuple[str, str]
    settings: tuple[object, ...] = ()
    paced: Callable[[float], tuple[object, ...]] = lambda epochs: ()
    epochwise: bool = False


def _warm_up(epochs: float) -> tuple[object, ...]:
    return ("--warmup-epochs", 0.1 * epochs)


def _milestones(epochs: float) -> tuple[object, ...]:
    return ("--lr-milestones", *(share * epochs for share in (0.3, 0.6, 0.9)))


# A grid of 3 x 3 cells of six pixels needs a side of 18 instead of 16.
_TILES = ("--resolution", 18, "--tile-size", 5, "--min-crop", 0.5)

PRETRAININGS: dict[str, Pretraining] = {
    "barlow": Pretraining(
        "barlow",
        "Barlow Twins",
        128,
        ("loss", "loss"),
        ("--min-crop", 0.2, "--max-sigma", 0.5, "--trust", 0.01, *PROJECTOR),
        _warm_up,
    ),
    "simclr": Pretraining(
        "simclr",
        "SimCLR",
        128,
        ("contrast_top1", "partner found"),
        # The paper's colour jitter and temperature for CIFAR-10 are 0.5 too (appendix B.9).
        (
            *("--min-crop", 0.2, "--color-strength", 0.5, "--temperature", 0.5),
            *("--projector", 256, 128, "--lr", 1.0, "--trust", 0.01),
        ),
        _warm_up,
    ),
    "vicreg": Pretraining(
        "vicreg",
        "VICReg",
        128,
        ("loss", "loss"),
        ("--min-crop", 0.2, "--max-sigma", 0.5, "--trust", 0.01, *PROJECTOR),
        _warm_up,
    ),
    "rotnet": Pretraining(
        "rotnet",
        "RotNet",
        64,
        ("rotation_top1", "rotation accuracy"),
        ("--min-crop", 0.5, "--lr", 0.05, "--hidden"),
        _milestones,
    ),
    "jigsaw": Pretraining(
        "jigsaw",
        "Jigsaw",
        64,
        ("permutation_top1", "1 of 100 permutations"),
        (*_TILES, "--num-permutations", 100, "--tile-features", 64, "--hidden", 256, "--lr", 0.05),
    ),
    "patches": Pretraining(
        "patches",
        "Relative patches",
        128,
        ("position_top1", "1 of 8 positions"),
        (*_TILES, "--hidden", 256, "--lr", 0.05),
    ),
    "colorization": Pretraining(
        "colorization",
        "Colourisation",
        128,
        ("color_top1", "1 of 261 colours"),
        ("--min-crop", 0.5, "--head-width", 32, "--lr", 0.001, "--lr-milestones"),
    ),
    "autoencoder": Pretraining(
        "vae", "Autoencoder", 128, ("reconstruction", "cross-entropy"), ("--beta", 0, "--decoder-width", 16)
    ),
    "vae": Pretraining("vae", "VAE", 128, ("reconstruction", "cross-entropy"), ("--decoder-width", 16)),
    "siamese_vae": Pretraining(
        "siamese_vae", "Siamese VAE", 64, ("triplets_ordered", "triplets in order"), ("--decoder-width", 16)
    ),
    "deepcluster": Pretraining(
        "deepcluster",
        "DeepCluster",
        128,
        ("nmi_labels", "NMI to the labels"),
        ("--hidden", "--num-clusters", 100, "--min-crop", 0.2),
        epochwise=True,
    ),
}


def pretraining_command(
    method: Pretraining, common: tuple[object, ...], out: Path, steps: int, steps_per_epoch: int
) -> Command:
    """Return the command that pre-trains with a method for this many steps."""
    paced = method.paced(steps / steps_per_epoch)
    network = ("--backbone", BACKBONE, "--resolution", RESOLUTION, "--batch-size", method.batch_size)
    length = ("--steps", steps, "--split", "train", "--out", out)
    return command(f"recipes/{method.recipe}.py", *common, *network, *length, *method.settings, *paced)


@dataclass(frozen=True)
class Labels:
    """The labels of a run.

    Attributes:
        per_class: true labels of each class.
        seed: seed of the choice of labels, of weights, order and views.
    """

    per_class: int
    seed: int
    num_classes: int


@dataclass(frozen=True)
class Training:
    """A method that trains with labels.

    Attributes:
        commands: (common arguments, labels, folder, steps) -> commands to run in this order.
        run: folder of the last classifier, below the folder given to `commands`.
        calibration: more arguments for the first command in calibration, so that a short run includes all
            parts of the method.
    """

    title: str
    commands: Callable[[tuple[object, ...], Labels, Path, int], list[Command]]
    run: str = "run"
    calibration: tuple[object, ...] = ()


BATCH_SIZE = 40
"""Labelled images per step; some methods take fewer. With 10 classes, 4 labels of each fill a batch: a step
costs the same for any number of labels from 4 per class on."""


def calibration_labels(num_classes: int) -> int:
    """Return the labels per class that fill a batch; at least 2, since active learning buys half of them."""
    return max(2, -(-BATCH_SIZE // max(1, num_classes)))


NETWORK = ("--backbone", BACKBONE, "--resolution", RESOLUTION)
SOLVER = ("--lr", 0.03, "--weight-decay", 5e-4)
POOL = ("--unlabeled-splits", "train")
ALL_LABELS = ("--validation-share", 0)  # nothing is chosen by validation here, so train on every label


def _chosen(labels: Labels) -> tuple[object, ...]:
    return (
        "--labels-per-class",
        labels.per_class,
        "--label-seed",
        labels.seed,
        "--seed",
        labels.seed,
        *ALL_LABELS,
    )


def _one(recipe: str, *settings: object) -> Callable[[tuple[object, ...], Labels, Path, int], list[Command]]:
    """Return `Training.commands` for a method that consists of one recipe."""

    def commands(common: tuple[object, ...], labels: Labels, out: Path, steps: int) -> list[Command]:
        last = ("--steps", steps, "--test-split", "", "--out", out / "run")
        return [command(f"recipes/{recipe}.py", *common, *settings, *_chosen(labels), *last)]

    return commands


def _active(common: tuple[object, ...], labels: Labels, out: Path, steps: int) -> list[Command]:
    """Return commands: train on half of the labels, buy the other half by active learning, train on all."""
    half = labels.per_class // 2
    known = ("--labels-per-class", half, "--label-seed", labels.seed, "--seed", labels.seed)
    budget = labels.num_classes * (labels.per_class - half)
    clusters = max(n for n in range(1, min(200, budget) + 1) if budget % n == 0)
    recipe = "recipes/supervised.py"
    train = (*common, *SUPERVISED, *known, *ALL_LABELS, "--steps", steps, "--test-split", "")
    pack, threads = common[common.index("--pack") + 1], common[common.index("--num-threads") + 1]
    ask = ("--pack", pack, "--num-threads", threads, *POOL, *known, "--oracle", "--run", out / "first")
    size = ("--clusters", clusters, "--per-cluster", budget // clusters, "--out", out / "ask")
    return [
        command(recipe, *train, "--out", out / "first"),
        command("recipes/active.py", *ask, *size),
        command(recipe, *train, "--extra-labels", out / "ask" / "bought.parquet", "--out", out / "run"),
    ]


SUPERVISED = (*NETWORK, *SOLVER, "--batch-size", BATCH_SIZE, "--min-crop", 0.5)
_PSEUDO = (*NETWORK, *SOLVER, *POOL)
_CYCLES = ("--batch-size", BATCH_SIZE, "--cycles", 2)

TRAININGS: dict[str, Training] = {
    "supervised": Training("Supervised", _one("supervised", *SUPERVISED)),
    "mean_teacher": Training(
        "Mean Teacher",
        _one(
            "mean_teacher",
            *(*NETWORK, *SOLVER, *POOL, "--batch-size", 20, "--min-crop", 0.5),
            *(
                # The class loss is divided by the number of all images: with three unlabelled images per
                # labelled one, it is a quarter of the mean over labelled images. The weight 10 was chosen
                # for that mean; 2.5 keeps the ratio.
                "--consistency-weight",
                2.5,
                "--ramp-epochs",
                0.3,
                "--ema-decay-early",
                0.95,
                "--ema-decay",
                0.99,
            ),
        ),
    ),
    "temporal_ensembling": Training(
        "Temporal ensembling",
        _one(
            "temporal_ensembling",
            *(*NETWORK, *POOL, "--batch-size", 20, "--lr", 0.003, "--weight-decay", 5e-4),
            *("--ramp-epochs", 0.3, "--ramp-down-epochs", 0.3),
        ),
    ),
    "classical": Training(
        "Pseudo-labels, classical",
        _one("pseudo_label", "--mode", "classical", *_PSEUDO, "--batch-size", 20, "--ramp-end", 0.5),
    ),
    "permanent": Training(
        "Pseudo-labels, permanent", _one("pseudo_label", "--mode", "permanent", *_PSEUDO, *_CYCLES)
    ),
    "local": Training(
        "Pseudo-labels, local",
        _one("pseudo_label", "--mode", "local", *_PSEUDO, *_CYCLES),
        calibration=("--threshold", 0),
    ),
    "fixmatch": Training(
        "FixMatch", _one("fixmatch", *NETWORK, *SOLVER, *POOL, "--batch-size", 20, "--ema-decay", 0.97)
    ),
    "self_training": Training(
        "Balanced self-training",
        _one(
            "self_training",
            *(*NETWORK, *SOLVER, *POOL, "--batch-size", BATCH_SIZE, "--min-crop", 0.5),
            *("--per-class", 500, 1000, "--top-k", 3),
        ),
    ),
    "ssl_gan": Training(
        "SSL-DCGAN (its own network)",
        _one(
            "ssl_gan",
            *("--backbone", "gan_discriminator_32", "--resolution", RESOLUTION, "--generator-width", 32),
            *(*POOL, "--batch-size", BATCH_SIZE, "--ema-decay", 0.97),
        ),
    ),
    "active": Training("Active labels, supervised", _active),
}
