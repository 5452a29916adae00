r"""Measure frozen features with a few labels per class, by kNN, linear probes and rounds of pseudo-labels.

Example:
    python tools/few_labels.py --init weights/lite0 --resolution 112 --pack packs/mine --out runs/frozen \
        --labels-per-class 1 2 4 8 16 32 64 --methods knn probe pseudo

The features of both splits are computed once (OUT/features); then each number of labels, seed and method
takes seconds. `pseudo` repeats these steps: fit a probe, guess the classes of the unlabelled images, keep the
most confident guesses of each class, more in each round, and fit again (Yalniz et al. 2019, arXiv 1905.00546,
on features).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.train.run_config import FrozenConfig
from loaders.common.checks import Count, Positive, PositiveShare, check_different, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line

Method = Literal["knn", "probe", "pseudo"]


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Measure frozen features with k labels per class, for several k, seeds and methods."""

    init: Path
    """Start: run folder, checkpoint, timm:NAME, hf:REPO or weights file, see docs/pretrained.md."""
    out: Path
    """Folder of the results and the features."""
    train_split: str = "train"
    """Labelled split to choose labels from; all its other images count as unlabelled."""
    test_split: str = "test"
    """Labelled split to measure on."""
    allow_leak: bool = False
    """Measure even if --train-split has, or the start learnt, labels of test images or of copies of them."""
    labels_per_class: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of labels per class; a smaller choice of labels is part of every larger one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the choice of labels."""
    methods: tuple[Method, ...] = ("knn", "probe", "pseudo")
    """Classifiers to fit to the features."""
    neighbours: Count = 20
    """k of kNN; all labelled images if there are fewer."""
    inverse_penalty: Positive = 0.1
    """C of the probes, scikit-learn's inverse strength of regularisation."""
    rounds: Count = 3
    """Rounds of pseudo-labels."""
    share: PositiveShare = 0.5
    """The last round keeps at most this share of the unlabelled images, the surest guesses of each class."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, empty lists, repeated values, and a folder that cannot be made."""
        check_numbers(self)
        check_folder(self.out)
        check_different(self, "labels_per_class", "seeds", "methods")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import sys
from dataclasses import replace

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor

from loaders.common.tables import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.evaluate.few_labels import (
    RESULTS_NAME,
    FewLabelResult,
    read_results,
    results_table,
    write_results,
)
from engine.evaluate.knn import knn_scores
from engine.evaluate.probe_solver import fit_probe
from engine.evaluate.representations import Features, topk_accuracy
from engine.labels.shared_images import check_run
from engine.nets.starts import find_start
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import make_accelerator, on_main, rank
from engine.train.run_config import described
from loaders import open_pack
from loaders.packs import Pack
from loaders.packs.labels.leaks import check_leak
from loaders.packs.labels.subsample import subsample_per_class, tell_scarce
from tools.frozen import frozen_features, say_next_of_start


def features(config: Config, pack: Pack) -> tuple[Features, Features]:
    """Return the features of the training split, and of the labelled images of the test split."""
    start = find_start(config.init, config.backbone).at(config.resolution)
    network = start.load().to(PartialState().device)
    bank, query = (
        frozen_features(config, network, start.view, pack.split(name), config.out, config.out)
        for name in (config.train_split, config.test_split)
    )
    return bank, query.labelled()


def classify(
    config: Config, method: Method, h: Tensor, labels: Tensor, others: Tensor, query: Tensor, num_classes: int
) -> Tensor:
    """Return one method's class scores [M, C] of the test images.

    Args:
        h: [N, D], features of the labelled images.
        labels: int64 [N].
        others: [U, D], features of the unlabelled images, which only `pseudo` uses.
        query: [M, D], features of the test images.
    """
    if method == "knn":
        return knn_scores(h, labels, query, num_classes, min(config.neighbours, len(h)))
    probe = fit_probe(h, labels, num_classes, config.inverse_penalty)
    for turn in range(1, config.rounds + 1 if method == "pseudo" and len(others) else 1):
        kept = int(config.share * len(others) * turn / config.rounds / num_classes)
        confidence, guess = probe.logits(others).softmax(1).max(1)
        chosen = [
            of_class[confidence[of_class].topk(min(kept, len(of_class))).indices]
            for of_class in (torch.nonzero(guess == c).flatten() for c in range(num_classes))
        ]
        sure = torch.cat(chosen)
        both = torch.cat([h.float(), others[sure].float()])
        probe = fit_probe(both, torch.cat([labels, guess[sure]]), num_classes, config.inverse_penalty)
    return probe.logits(query)


def measure(config: Config, pack: Pack, bank: Features, query: Features) -> list[FewLabelResult]:
    """Measure every method with every number of labels and seed."""
    results, num_classes = [], len(pack.classes)
    top5 = min(5, num_classes)
    for per_class in config.labels_per_class:
        for seed in config.seeds:
            chosen = torch.zeros(len(bank.labels), dtype=torch.bool)
            chosen[subsample_per_class(bank.labels.numpy(), per_class, seed)] = True
            for method in config.methods:
                others = bank.h[~chosen] if method == "pseudo" else bank.h[:0]
                given = (bank.h[chosen].float(), bank.labels[chosen], others)
                scores = classify(config, method, *given, query.h, num_classes)
                shares = (topk_accuracy(scores, query.labels), topk_accuracy(scores, query.labels, top5))
                measured = (per_class, seed, shares[0], len(query.labels), 0, shares[1], method)
                results.append(FewLabelResult(f"{config.init} {method}", *measured))
    return results


def refuse_others(out: Path) -> None:
    """Refuse to overwrite results of recipes/transfer.py or tools/label_sweep.py, which took much longer.

    Raises:
        UserError: the folder has such results, or damaged ones.
    """
    if (out / RESULTS_NAME).is_file() and "rounds" not in read_results(out)[1]:
        raise UserError(
            f"out: expected no results of trainings in {out}, found its {RESULTS_NAME}; give another --out"
        )


def run(config: Config) -> list[FewLabelResult]:
    """Compute the features on all ranks; measure and write the results on rank 0."""
    refuse_others(config.out)
    pack = open_pack(config.pack, config.loader.store)
    pack.require_one_label()
    for option in ("train_split", "test_split"):
        pack.manifest.require_labels(pack.split(getattr(config, option)).name, option)
    measured, split = pack.split(config.test_split), pack.split(config.train_split)
    known = split.labels()
    tell_scarce(known, max(config.labels_per_class), pack.classes)
    rows = split.rows(np.flatnonzero(known >= 0))
    leaks = check_leak(pack, rows, measured, config.allow_leak, "train_split")
    shared = check_run(config.init, measured, config.allow_leak)
    shared = replace(shared, leaks=leaks + shared.leaks)
    make_accelerator("no", device=config.device)
    shared.say()
    on_main(lambda: config.out.mkdir(parents=True, exist_ok=True))
    on_main(lambda: forget_bad_rows(config.out))
    bank, query = features(config, pack)

    def write() -> list[FewLabelResult]:
        results = measure(config, pack, bank, query)
        write_results(config.out, results, shared.describe(described(config)))
        return results

    return on_main(write)


def main() -> None:
    """Parse the command line and run; only rank 0 prints."""
    config = command_line(Config, __doc__)
    results = run(config)
    if rank() == 0:
        print_table(Console(), results_table(results, "features"))
        print(f"few_labels: results{describe_bad_rows(config.out)} -> {config.out}")
        say_next_of_start(config, config.init, config.train_split, config.test_split)


if __name__ == "__main__":
    run_command(main)
