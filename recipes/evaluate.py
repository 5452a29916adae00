r"""Measure a run's classifier: accuracies, confusions and calibration, with views of several sizes and flips.

Example:
    python recipes/evaluate.py --run runs/fixmatch --pack packs/mine --sizes 96 144 192 --out runs/tested

Test-time augmentation averages the probabilities of all views; each view's own accuracy is printed too.
`tools/probe.py` measures backbones without a classifier.

Source: Zhou, Wan, Li 2021, section 3.5: three sizes, 96, 144 and 192; 56.07 % became 57.54 %.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from engine.choices import Weights
from engine.train.run_config import ForwardConfig, PackConfig
from loaders.common.checks import Count, PositiveShare, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig, ForwardConfig):
    """Print accuracies of a classifier and write its report, its page and its predictions."""

    run: Path
    """Run folder with a classifier."""
    out: Path
    """Folder of the results; existing results are replaced."""
    split: str = "test"
    """Split to predict; images without a label are predicted but not measured."""
    allow_leak: bool = False
    """Measure even if the run, or one that it started from, was trained on labels of the split or of copies
    of its images; classification.json states leaks."""
    weights: Weights | None = None
    """Weights to measure: raw, or ema, their moving average; by default ema if the run has it."""
    sizes: tuple[Count, ...] = ()
    """Side lengths of the views in pixels; by default that of the run. Report: 96 144 192."""
    flips: bool = False
    """Also predict every view mirrored left to right."""
    crop: PositiveShare | None = None
    """Fraction of the image's short side that the views show; by default that of the run's own measurements,
    usually 1 below 128 pixels and 0.875 from 128 on."""
    predictions: bool = True
    """Write predictions.csv and predictions.npz, from which the page is made."""
    classes: tuple[str, ...] = ()
    """Classes whose right and wrong images the page shows; by default the two best and the two worst."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and an --out that cannot be written or holds a run."""
        check_numbers(self)
        check_folder(self.out)
        if (self.out / "config.json").is_file():
            raise UserError(
                f"out: expected a folder without a run, whose page would be overwritten, found a run at "
                f"{self.out}; give another --out"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from engine.device import taken_device
from engine.evaluate.classification_report import (
    ClassificationReport,
    classification_report,
    draw_confusion,
    draw_reliability,
)
from engine.evaluate.predict import predict
from engine.evaluate.ranks import rank_images
from engine.labels.shared_images import Account, check_run
from engine.nets.classifier import Classifier, find_classifier
from engine.report.figures import save_picture
from engine.report.names import check_classes
from engine.report.other_pages import CLASSIFICATION_NAME, PREDICTIONS_NAME, build_page
from engine.report.run_page import PAGE_NAME, PageOptions, leave_page
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import refuse_ranks
from engine.train.run_config import described, on_device
from loaders import build_loader, open_pack
from loaders.common.files import csv_text, to_json, write_atomic
from loaders.common.next_step import say_next
from loaders.common.notice import tell
from loaders.common.tables import print_table
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import Pack
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import ViewPolicy

_PREDICTED = ("predictions.csv", PREDICTIONS_NAME)
_MEASURED = (
    *("confusion.csv", "precision_at_rank.csv", "confusion.png", "confusion-dark.png"),
    *("calibration.png", "calibration-dark.png"),
)


@dataclass(frozen=True)
class Evaluated:
    """The predictions of a classifier on a split.

    Attributes:
        views: name of each view.
        by_view: float32 [V, N, C], probabilities of each view.
        labels: int64 [N], -1 for images without a label.
        index: int64 [N], rows of the pack.
        classes: names of the C classes: the pack's, or the classifier's where the pack names none.
    """

    views: tuple[str, ...]
    by_view: Tensor
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]

    @property
    def probabilities(self) -> Tensor:
        """Mean of the probabilities over the views, float32 [N, C]."""
        return self.by_view.mean(0)

    def report(self, view: int | None = None) -> ClassificationReport:
        """Measure one view, or the mean of all, on the labelled images."""
        known = self.labels >= 0
        probabilities = self.probabilities if view is None else self.by_view[view]
        return classification_report(probabilities[known], self.labels[known])


class BySide(nn.Module):
    """A classifier for views of several side lengths, with one network for each."""

    def __init__(self, network: Classifier, sides: Iterable[int]) -> None:
        """Fit the network to every side length; a network whose parts depend on the side is copied.

        Raises:
            UserError: the backbone cannot take one of the side lengths.
        """
        super().__init__()
        self.of_side = nn.ModuleDict({str(side): network.at(side) for side in sides})

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        logits: Tensor = self.of_side[str(x.shape[-1])](x)
        return logits


def make_views(config: Config, usual: EvaluationView) -> dict[str, ViewPolicy]:
    """Return the views of the test-time augmentation, by name; `usual` is the classifier's own view."""
    views = {}
    for size in dict.fromkeys(config.sizes or (usual.resolution,)):
        view = replace(usual, resolution=size, crop=config.crop or usual.crop)
        views[f"{size}"] = view.policy()
        if config.flips:
            views[f"{size} flipped"] = view.policy(mirrored=True)
    return views


def predict_split(config: Config, pack: Pack) -> Evaluated:
    """Predict every image of the split in every view; each is decoded once for all views."""
    network = find_classifier(config.run, pack.classes or None, config.weights)
    device = taken_device(config.device)
    views = make_views(config, network.view)
    by_side = BySide(network, {view.resolution for view in views.values()})
    split, options = pack.split(config.split), on_device(config.loader, device)
    policies = tuple(views.values())
    with build_loader(split, policies, config.batch_size, options=options, mode="eval") as loader:
        parts = list(predict(by_side.to(device), loader, device, config.out))
    return Evaluated(
        tuple(views),
        torch.cat([part.by_view for part in parts], 1),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.index for part in parts]),
        network.classes,
    )


def write_predictions(out: Path, pack: Pack, evaluated: Evaluated) -> None:
    """Write predictions.csv, with one line per image, and predictions.npz, with all probabilities."""
    confidence, guess = evaluated.probabilities.max(1)
    columns = (evaluated.index, evaluated.labels, guess, confidence)
    lines = []
    for row, label, best, sure in zip(*(column.tolist() for column in columns), strict=True):
        name = evaluated.classes[label] if label >= 0 else ""
        lines.append((row, pack.key(row), name, evaluated.classes[best], f"{sure:.6f}"))
    heading = ("row", "key", "label", "guess", "confidence")
    write_atomic(out / "predictions.csv", csv_text(heading, lines).encode())
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        row=evaluated.index.numpy(),
        label=evaluated.labels.numpy(),
        classes=np.array(evaluated.classes, str),
        probabilities=evaluated.probabilities.numpy(),
    )
    write_atomic(out / PREDICTIONS_NAME, arrays.getvalue())


def write_report(config: Config, pack: Pack, evaluated: Evaluated, shared: Account) -> ClassificationReport:
    """Write classification.json, confusions and precision at ranks as tables, and two plots."""
    report = evaluated.report()
    by_view = {name: evaluated.report(number).figures() for number, name in enumerate(evaluated.views)}
    per_class = {
        name: None if np.isnan(share) else float(share)
        for name, share in zip(pack.classes, report.per_class, strict=True)
    }
    content = {
        "config": shared.describe(described(config)),
        "pack": pack_fingerprint(pack),
        "mean_of_views": report.figures(),
        "views": by_view,
        "per_class_top1": per_class,
    }
    write_atomic(config.out / CLASSIFICATION_NAME, to_json(content))
    counts = zip(pack.classes, report.confusion.tolist(), strict=True)
    text = csv_text(("class", *pack.classes), ((name, *row) for name, row in counts))
    write_atomic(config.out / "confusion.csv", text.encode())
    write_ranks(config.out, evaluated)
    confusion = draw_confusion(report.confusion, pack.classes)
    save_picture(config.out / "confusion.png", confusion)
    if confusion.caption:  # names that no font can draw, or pooled cells
        tell(f"confusion.png: {confusion.caption}")
    save_picture(config.out / "calibration.png", draw_reliability(report.reliability))
    return report


def write_ranks(out: Path, evaluated: Evaluated) -> None:
    """Write the precision of each class at several ranks, among the labelled images."""
    known = evaluated.labels >= 0
    ranked = rank_images(evaluated.probabilities[known].numpy(), evaluated.labels[known].numpy())
    rows = (
        [name, count, *("" if np.isnan(share) else share for share in shares)]
        for name, count, shares in ranked.rows(evaluated.classes)
    )
    write_atomic(out / "precision_at_rank.csv", csv_text(ranked.columns, rows).encode())


def evaluate(config: Config) -> tuple[Evaluated, ClassificationReport | None]:
    """Predict a split and write all results; the report is None if no image has a label."""
    refuse_ranks("evaluate")
    pack = open_pack(config.pack, config.loader.store)
    shared = check_run(config.run, pack.split(config.split), config.allow_leak)
    shared.say()
    check_classes(config.classes, pack.classes)
    forget_bad_rows(config.out)
    evaluated = predict_split(config, pack)
    config.out.mkdir(parents=True, exist_ok=True)
    for name in (CLASSIFICATION_NAME, PAGE_NAME, *_PREDICTED, *_MEASURED):  # delete old results
        (config.out / name).unlink(missing_ok=True)
    if config.predictions:
        write_predictions(config.out, pack, evaluated)
    if not bool((evaluated.labels >= 0).any()):
        content = {"config": shared.describe(described(config)), "pack": pack_fingerprint(pack)}
        write_atomic(config.out / CLASSIFICATION_NAME, to_json(content))
        return evaluated, None
    return evaluated, write_report(config, pack, evaluated, shared)


def print_report(console: Console, split: str, evaluated: Evaluated, report: ClassificationReport) -> None:
    """Print one row per view and, for several views, one for their mean."""
    table = Table(
        "view", "top 1", "top 5", "mean of classes", "calibration error",
        title=f"{report.num_images:,} images of split {split!r}, %",
    )  # fmt: skip
    rows = [(name, evaluated.report(number)) for number, name in enumerate(evaluated.views)]
    if len(rows) > 1:
        rows.append(("mean of views", report))
    for name, found in rows:
        shares = (found.top1, found.top5, found.mean_class_top1, found.calibration_error)
        table.add_row(name, *(f"{100 * share:.2f}" for share in shares))
    print_table(console, table)


def main() -> None:
    """Parse the command line and run the command."""
    config = command_line(Config, __doc__)
    evaluated, report = evaluate(config)
    if report is not None:
        print_report(Console(), config.split, evaluated, report)
    shown = (
        f"{len(evaluated.index):,} images" if report else f"no image of split {config.split!r} has a label"
    )
    if config.predictions:
        leave_page(config.out, lambda: build_page(PageOptions(config.out, classes=config.classes)))
    print(f"evaluate: {shown}{describe_bad_rows(config.out)} -> {config.out}")
    say_next("tools/predict.py", "--network", config.run, "--images", "FOLDER", "--out", "predictions")


if __name__ == "__main__":
    run_command(main)
