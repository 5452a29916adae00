r"""Measure a run's backbone with frozen weights, by nearest neighbours and by a linear probe.

Example:
    python tools/probe.py --run runs/barlow --pack packs/mine --train-split train --test-split test
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.evaluate.results import EVALUATION_NAME
from engine.train.run_config import FrozenConfig
from loaders.common.checks import Count, Positive, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_file, check_folder
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Print the accuracy of kNN and of a linear probe, and write evaluation.json."""

    run: Path
    """Start to measure: a run folder, timm:NAME, hf:REPO, or another project's folder or file of weights."""
    results: Path | None = None
    """Folder for evaluation.json and the features; --run by default, required if --run is not a folder."""
    train_split: str = "train"
    """Labelled split whose images are the neighbours of kNN, and to which the probe is fitted."""
    test_split: str = "test"
    """Labelled split to measure on."""
    allow_leak: bool = False
    """Measure even if kNN and the probe, or the run when it was trained, have labels of test images or of
    copies of them; evaluation.json describes these leaks under `leaks`."""
    labels_per_class: int | None = None
    """Number of labelled images per class to use from the training split; all by default."""
    neighbours: Count = 20
    """k of kNN; all labelled images if there are fewer. 20 is usual for small sets, 200 for ImageNet."""
    temperature: Positive = 0.07
    """Temperature of the neighbours' votes; a lower one gives the nearest neighbours more weight."""
    inverse_penalty: Positive = 1.0
    """C of the linear probe, scikit-learn's inverse strength of regularisation."""
    untrained: bool = True
    """Also measure the same network with random weights, to show what the architecture alone achieves."""
    untrained_seed: int = 0
    """Seed of these random weights."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a folder that results cannot be written into."""
        check_numbers(self)
        named = str(self.run).startswith(("timm:", "hf:"))  # a missing run folder is refused later
        if self.results is None and (named or self.run.is_file()):
            raise UserError(
                f"run: expected a folder to write the results into, found {self.run}; give --results"
            )
        check_folder(self.out, "run", writable=False)
        check_file(self.folder / EVALUATION_NAME, "results")

    @property
    def folder(self) -> Path:
        """Folder of the results and the features."""
        return self.results or self.run

    @property
    def out(self) -> Path:
        """Folder for the list of unreadable images; the run's own list may be about another pack."""
        return self.folder / "evaluation"


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import sys

from rich.console import Console
from rich.table import Table
from torch import nn

from loaders.common.tables import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.evaluate.knn import knn_scores
from engine.evaluate.probe_solver import fit_probe
from engine.evaluate.representations import Features, topk_accuracy
from engine.evaluate.results import Evaluation, FrozenAccuracy, write_evaluation
from engine.labels.shared_images import Account, check_run
from engine.nets.backbones import architecture, build_backbone
from engine.nets.foreign import is_foreign
from engine.nets.starts import find_start
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import make_accelerator, on_main, rank, seed_everything
from engine.train.run_config import described
from engine.train.run_folder import read_run
from loaders import open_pack
from loaders.common.notice import tell
from loaders.packs import Pack
from loaders.packs.labels.leaks import check_leak
from loaders.packs.labels.subsample import few_labels, subsample_per_class, tell_scarce
from loaders.views.evaluation import EvaluationView
from tools.frozen import frozen_features, say_next_of_start


def features_of(
    config: Config,
    pack: Pack,
    split: str,
    view: EvaluationView,
    backbone: nn.Module,
    folder: Path,
    per_class: int | None = None,
) -> Features:
    """Return the representations of a split's labelled images: of all, or of `per_class` of each class."""
    pack.require_one_label()
    images = pack.split(split)
    if per_class is not None:
        known = images.labels()
        tell_scarce(known, per_class, pack.classes)
        images = images.take(subsample_per_class(known, per_class, seed=0))
    return frozen_features(config, backbone, view, images, folder, config.out).labelled()


def measure(
    config: Config, pack: Pack, name: str, view: EvaluationView, backbone: nn.Module
) -> FrozenAccuracy:
    """Measure one backbone by kNN and a linear probe."""
    # Keep untrained features out of the run's folder, where tools/inspect_pack.py would judge labels by them.
    folder = config.folder / name if name == "untrained" else config.folder
    bank = features_of(config, pack, config.train_split, view, backbone, folder, config.labels_per_class)
    query = features_of(config, pack, config.test_split, view, backbone, folder)
    num_classes = len(pack.classes)
    if not len(bank.labels):
        raise UserError(
            f"evaluation: expected labelled images that can be read in split {config.train_split!r}, found "
            "none; give another --train-split"
        )
    return on_main(lambda: _accuracies(config, name, num_classes, bank, query))


def _accuracies(
    config: Config, name: str, num_classes: int, bank: Features, query: Features
) -> FrozenAccuracy:
    k = min(config.neighbours, len(bank.labels))
    if k < config.neighbours:
        tell(f"probe: {k} neighbours for {name}, all labelled images of split {config.train_split!r}")
    votes = knn_scores(bank.h, bank.labels, query.h, num_classes, k, config.temperature)
    probe = fit_probe(bank.h, bank.labels, num_classes, config.inverse_penalty)
    logits = probe.logits(query.h)
    top_k = min(5, num_classes)
    return FrozenAccuracy(
        network=name,
        knn_top1=topk_accuracy(votes, query.labels),
        linear_top1=topk_accuracy(logits, query.labels),
        linear_top5=topk_accuracy(logits, query.labels, top_k),
        probe_converged=probe.converged,
        num_train=len(bank.labels),
        num_test=len(query.labels),
    )


def account(config: Config, pack: Pack) -> Account:
    """Look for test images, or copies of them, among the images whose labels kNN, the probe or the run use.

    Raises:
        UserError: a split has no labels, or there is a leak and --allow-leak is not given.
    """
    for option in ("train_split", "test_split"):
        pack.manifest.require_labels(pack.split(getattr(config, option)).name, option)
    bank, measured = pack.split(config.train_split), pack.split(config.test_split)
    rows = few_labels(bank, config.labels_per_class, 0).row
    leaks = check_leak(pack, rows, measured, config.allow_leak, "train_split")
    behind = check_run(config.run, measured, config.allow_leak)
    return Account(leaks + behind.leaks, behind.notes)


def evaluate(config: Config) -> Evaluation:
    """Measure the run's backbone, and with --untrained an untrained one, and write evaluation.json."""
    foreign = is_foreign(config.run)
    recipe = str(config.run) if foreign else read_run(config.run)["recipe"]
    file = config.run if foreign else config.run / "backbone.safetensors"
    start = find_start(file, config.backbone).at(config.resolution)
    view, name = start.view, architecture(start.backbone)
    pack = open_pack(config.pack, config.loader.store)
    shared = account(config, pack)
    shared.say()
    forget_bad_rows(config.out)
    device = make_accelerator("no", device=config.device).device
    rows = [measure(config, pack, recipe, view, start.load().to(device))]
    if config.untrained:
        seed_everything(config.untrained_seed)
        untrained = build_backbone(name, view.resolution).to(device)
        rows.append(measure(config, pack, "untrained", view, untrained))
    measured_with = {**described(config), "backbone": name, "resolution": view.resolution}
    evaluation = Evaluation(tuple(rows), shared.describe(measured_with))
    on_main(lambda: write_evaluation(config.folder, evaluation))
    return evaluation


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print a table with one row per network, accuracies in per cent."""
    first = evaluation.rows[0]
    title = f"frozen features: {first.num_train:,} training and {first.num_test:,} test images, %"
    table = Table("network", "kNN", "linear probe", "linear probe, top 5", title=title)
    for row in evaluation.rows:
        shares = (row.knn_top1, row.linear_top1, row.linear_top5)
        table.add_row(row.network, *(f"{100 * share:.1f}" for share in shares))
    print_table(console, table)
    for row in evaluation.rows:
        if not row.probe_converged:
            console.print(
                f"the probe of {row.network} stopped at its iteration limit: read it as a lower bound"
            )


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    evaluation = evaluate(config)
    if rank() == 0:
        print_evaluation(Console(), evaluation)
        print(f"probe: results{describe_bad_rows(config.out)} -> {config.folder}")
        say_next_of_start(config, config.run, config.train_split, config.test_split)


if __name__ == "__main__":
    run_command(main)
