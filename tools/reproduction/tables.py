"""The tables at each scale. To change a row or a budget, change this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tools.reproduction.plan import ResultTable, Row, Stage

ScaleName = Literal["tiny", "short", "full"]
TableName = Literal["speed", "budget", "ablation", "start"]


@dataclass(frozen=True)
class Scale:
    """Sizes at a scale: `tiny` for tests on the digits, `short` for minutes, `full` for docs/results.md.

    Attributes:
        resolution: side of the views in pixels; `start` with --init has 112.
        budget_s: core seconds of a row in `budget` and `start`; a row of `ablation` has twice as many.
        trial_s: core seconds of the trial of one setting in `budget`.
        tried: number of settings tried for each row of `budget`.
        seeds: seeds for each number of labels per class in `budget`.
        batch_size: labelled images per step, unless a row sets its own number.
        mu: unlabelled images per labelled image, unless a row sets its own number.
        pretrain_batch: images per step of pre-training.
        projector: widths of the projector's layers in pre-training.
        calibration: see `ResultTable`.
        flip_p: probability that a view is mirrored; 0 for digits.
    """

    resolution: int
    budget_s: float
    trial_s: float
    tried: int
    seeds: dict[int, tuple[int, ...]]
    batch_size: int
    mu: int
    pretrain_batch: int
    projector: tuple[int, ...]
    calibration: tuple[int, int]
    flip_p: float = 0.5


SCALES: dict[ScaleName, Scale] = {
    "tiny": Scale(16, 4.0, 2.0, 2, {4: (0,)}, 20, 2, 32, (32, 32), (2, 6), flip_p=0.0),
    "short": Scale(32, 600.0, 60.0, 2, {25: (0,)}, 32, 4, 128, (512, 512, 512), (4, 12)),
    "full": Scale(
        32, 4800.0, 480.0, 3, {4: (0, 1, 2), 25: (0, 1, 2), 50: (0, 1, 2), 400: (0,)}, 32, 7, 128,
        (512, 512, 512), (8, 48),
    ),
}  # fmt: skip
NETWORK = "compact_cnn"


def make_table(name: TableName, scale: ScaleName, init: str = "", peer: str = "") -> ResultTable:
    """Return the table with this name at a scale.

    Args:
        init: pre-trained start for the table `start`, see docs/pretrained.md.
        peer: path of airbench94.py in a checkout of KellerJordan/cifar10-airbench, for the table `speed`.
    """
    size = SCALES[scale]
    if name == "speed":
        return _speed(size, scale, peer)
    if name == "budget":
        return _budget(size)
    if name == "ablation":
        return _ablation(size)
    return _start(size, init)


def _network(size: Scale) -> tuple[object, ...]:
    return ("--backbone", NETWORK, "--resolution", size.resolution)


def _views(size: Scale) -> tuple[object, ...]:
    return ("--flip-p", size.flip_p, *(("--flips", "in_turns") if size.flip_p else ()))


SPEED_RUN: tuple[object, ...] = (
    *("--view", "shift", "--shift", 0.0625, "--schedule", "cosine", "--label-smoothing", 0.2),
    *("--optimizer", "muon", "--optimizer-lr", 0.0125, "--optimizer-momentum", 0.6, "--weight-decay", 1.6),
)
"""Options of the supervised run on all labels, chosen on held-out images; see docs/results.md."""


SOLVER: tuple[object, ...] = (
    *("--optimizer", "muon", "--optimizer-lr", 0.0125, "--optimizer-momentum", 0.6, "--schedule", "cosine"),
)
FEW_LABELS: tuple[object, ...] = (*SOLVER, "--ema-decay", 0.99)
"""Options of training on few labels, with and without unlabelled images; see docs/results.md."""
GUESSES: tuple[object, ...] = ("--guesses", "average", "--adaptive-threshold", "--align")


def _speed(size: Scale, scale: ScaleName, peer: str) -> ResultTable:
    """All labels: accuracy within the core seconds that a peer took, or if there is no peer in fixed ones."""
    options = (*_network(size), *_views(size), *SPEED_RUN, "--batch-size", 1000 if scale != "tiny" else 40)
    stage = Stage("train", "recipes/supervised.py", options)
    rows = [Row("compact", f"{NETWORK}, Muon", (stage,))]
    if peer:  # first, since its time is the budget of the other rows
        source = ("--source", peer, "--epochs", 9.9)
        stage = Stage("train", "tools/peers/airbench.py", source, labels=False, lengths=())
        rows.insert(0, Row("airbench94", "airbench94 on the CPU", (stage,), baseline=True, results="peer"))
    seeds = {0: (0,) if scale == "tiny" else (0, 1, 2)}
    budget = {"tiny": 4.0, "short": 600.0, "full": 1150.0}[scale]
    testing = ("--flips",) if size.flip_p else ()
    return ResultTable(
        "speed", "A supervised run on all labels", tuple(rows), (0,), seeds, budget, testing=testing,
        calibration=size.calibration, budget_of="airbench94" if peer else "",
    )  # fmt: skip


def _budget(size: Scale) -> ResultTable:
    """Few labels: all training of a row, pre-training included, within the same core seconds."""
    network, few = _network(size), ("--flip-p", size.flip_p)
    solver = ("--batch-size", size.batch_size)
    alike = (*network, *few, "--split", "train", "--batch-size", size.pretrain_batch, "--min-crop", 0.2)
    alike = (*alike, "--max-sigma", 1.0, "--projector", *size.projector, "--warmup-epochs", 0.1)

    def pretraining(share: float) -> Stage:
        options = (*alike, *SOLVER, "--weight-decay", 0.4)
        return Stage("pretrain", "recipes/vicreg.py", options, share, labels=False)

    def supervised(*more: object, share: float = 1.0) -> Stage:
        options = (*network, *few, *solver, "--view", "strong", *more)
        return Stage("train", "recipes/supervised.py", options, share)

    def fixmatch(
        *more: object, share: float = 1.0, labeled: int = size.batch_size, mu: int = size.mu
    ) -> Stage:
        batch = ("--batch-size", labeled, "--unlabeled-splits", "train", "--mu", mu)
        return Stage("train", "recipes/fixmatch.py", (*network, *few, *batch, *GUESSES, *more), share)

    rounds = (
        *(*network, *few, *solver, "--weight-decay", 5e-4, "--unlabeled-splits", "train", "--min-crop", 0.5),
        *("--per-class", *_growing(size), "--top-k", 3),
    )
    # A random classifier, since choosing a linear probe as its start takes as long as the training itself.
    begun = (*FEW_LABELS, "--init", "{pretrain}")
    tuned = supervised(*begun, "--classifier-start", "random", share=0.2)
    rates = (("--lr", 0.03), ("--lr", 0.1), ("--lr", 0.01))[: size.tried]
    decays = (("--weight-decay", 0.4), ("--weight-decay", 0.1), ("--weight-decay", 1.6))[: size.tried]
    short = supervised(*FEW_LABELS, share=0.125)  # on 250 labels it was 4 points better than the long run
    # A quarter of the images is labelled: on 4,000 labels, an eighth leaves the supervised loss high.
    more_labels = fixmatch(*FEW_LABELS, labeled=2 * size.batch_size, mu=3)
    in_rounds = Stage("train", "recipes/self_training.py", rounds)
    both = (pretraining(0.5), fixmatch(*begun, share=0.5))
    rows = (
        Row("supervised", "supervised, strong views", (supervised(*FEW_LABELS),), decays, baseline=True),
        Row("supervised_short", "supervised, 1/8 of the time", (short,), decays, baseline=True),
        Row("pretrained", "own pre-training, fine-tuned", (pretraining(0.8), tuned), decays, True),
        Row("fixmatch", "FixMatch", (fixmatch(*FEW_LABELS),), decays, True),
        Row("fixmatch_mu_3", "FixMatch, mu 3", (more_labels,), decays, True),
        Row("pretrained_fixmatch", "pre-training, FixMatch", both, decays, True),
        Row("rounds", "rounds of pseudo-labels", (in_rounds,), rates, True),
    )  # fmt: skip
    return ResultTable(
        "budget", "Few labels at an equal budget", rows, tuple(size.seeds), size.seeds, size.budget_s,
        size.trial_s, 25 if 25 in size.seeds else min(size.seeds), size.calibration,
    )  # fmt: skip


def _growing(size: Scale) -> tuple[int, ...]:
    return (20, 40) if size.flip_p == 0.0 else (500, 1000)


def _ablation(size: Scale) -> ResultTable:
    """What each stage of the 2021 report's pipeline adds."""
    tiny = size.flip_p == 0.0
    sides = [size.resolution + step for step in (0, 4, 8)]
    options = (
        *(
            *_network(size),
            "--flip-p",
            size.flip_p,
            "--unlabeled-split",
            "train",
            "--oracle",
            "--sizes",
            *sides,
        ),
        *("--pretrain.batch-size", size.pretrain_batch, "--pretrain.projector", *size.projector),
        *("--pretrain.min-crop", 0.2, "--pretrain.warmup-epochs", 0.5),
        *("--fine-tune.batch-size", size.batch_size, "--fine-tune.min-crop", 0.5, "--fine-tune.lr", 0.03),
        *("--rounds.per-class", *_growing(size), "--rounds.top-k", 3),
        *("--fixmatch.batch-size", size.batch_size, "--fixmatch.mu", size.mu, "--fixmatch.ema-decay", 0.99),
        *("--ask.clusters", 5 if tiny else 50, "--ask.per-cluster", 2 if tiny else 5),
    )
    lengths = (
        ("--pretrain.epochs", 1.0),
        ("--fine-tune.epochs", 20.0 if not tiny else 1.0),
        ("--rounds.epochs", 1.0),
        ("--rounds.true-epochs", 10.0 if not tiny else 1.0),
        ("--fixmatch.epochs", 1.0),
    )
    count = 25 if 25 in size.seeds else min(size.seeds)
    stage = Stage("pipeline", "recipes/pipeline.py", options, lengths=lengths)
    seeds = {count: (0,) if len(size.seeds) == 1 else (0, 1, 2)}
    return ResultTable(
        "ablation", "The pipeline, stage by stage", (Row("pipeline", "", (stage,), results="ablation"),),
        (count,), seeds, 2 * size.budget_s, calibration=(1, 2),
    )  # fmt: skip


def _start(size: Scale, init: str) -> ResultTable:
    """Frozen features of a pre-trained network."""
    counts, seeds = ((4, 25, 50, 400) if size.flip_p else (1, 4)), (0, 1, 2)
    options = (
        *("--init", init or "{start}", "--labels-per-class", *counts, "--seeds", *seeds),
        *("--methods", "knn", "probe", "pseudo", "--resolution", 112 if init else size.resolution),
    )
    stages = [Stage("features", "tools/few_labels.py", options, 0.5, labels=False, lengths=())]
    if not init:  # a network trained on some labels stands in for a pre-trained one
        own = (*_network(size), "--flip-p", size.flip_p, "--batch-size", size.batch_size, "--test-split", "")
        own = (*own, "--view", "shift", "--labels-per-class", 20, "--validation-share", 0)
        stages.insert(0, Stage("start", "recipes/supervised.py", own, 0.5, labels=False))
    row = Row("features", "", tuple(stages), results="features")
    return ResultTable(
        "start", "From a pre-trained start, frozen features", (row,), counts, dict.fromkeys(counts, seeds),
        size.budget_s, calibration=size.calibration,
    )  # fmt: skip
