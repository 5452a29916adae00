r"""Balanced self-training: rounds of pseudo-labels, the same number for every class.

Example:
    python recipes/self_training.py --pack packs/mine --init runs/finetuned --backbone resnet50 \
        --resolution 96 --per-class 200 300 400 500 --out runs/rounds

Sources: Zhou, Wan, Li 2021, sections 3.2 and 4.2, after Yalniz et al. 2019, "Billion-scale semi-supervised
learning for image classification" (arXiv 1905.00546).

Each round predicts all unlabelled images with the newest network (or the best, see `--go-on-from`). It keeps
the top K classes of each image and, of these, the top P images of each class. It fine-tunes on pseudo-labels
and true labels, then on true labels only, with a classifier layer from random weights both times. P usually
grows from round to round. Every round writes its labels to labels/round-N.parquet and counts the images
selected for several classes. `--init` is a classifier or a pre-trained network; without a classifier, the
network is first trained on the true labels.

The algorithm is in `run_rounds`, the selection in `engine.labels.select`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from engine.choices import ClassifierStart, Device, Duplicates, Keep
from engine.train.classifier_config import PhasesConfig
from loaders.common.checks import Count
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(PhasesConfig):
    """Train a classifier in rounds of balanced pseudo-labels."""

    backbone: str = "resnet50"
    """Any timm name, wrn_28_2, or tiny_resnet for a CPU; that of --init. Report: resnet50."""
    resolution: Count = 96
    """Side length of the views in pixels. Report: 96."""
    top_k: Count = 10
    """K, number of classes that an image may be selected for, at most all classes. Report: 10."""
    per_class: tuple[Count, ...] = (200, 300, 400, 500)
    """P of each round, number of images to select per class. Report: 200, 300, 400, 500 of 640 per class."""
    duplicates: Duplicates = "best"
    """What to do with an image selected for several classes. best: keep its most probable class; drop: leave
    the image out; all: train on it under each class. The report allows several classes per image and does not
    say how training uses them."""
    max_duplicate_share: float = 0.01
    """Suggest the largest P whose share of extra labels, those beyond an image's first, is at most this.
    Report: between 0.0027 and 0.0202."""
    first_epochs: Count = 40
    """Passes over the true labels before the first round, where --init has no classifier. Report: 40."""
    epochs: Count = 40
    """Passes over pseudo and true labels, per round. Report: not stated; fine-tuning 40."""
    true_epochs: Count = 40
    """Passes over the true labels afterwards, per round. Report: not stated; fine-tuning 40."""
    batch_size: Count = 256
    """Images per step over all ranks. Report: not stated."""
    lr: float = 0.05
    """Peak learning rate of backbone and classifier layer; a cosine takes it down to 0. Report: 0.05."""
    min_crop: float = 0.08
    """Smallest fraction of the image's area that a training view shows."""
    go_on_from: Keep = "last"
    """Network that labels the next round and is kept at the end. last: the newest; best: the one with the
    highest validation accuracy, possibly the one before the first round."""
    labels_only: bool = False
    """Only label, with the classifier of --init and the first P, and count duplicates; train nothing."""

    usual_start: ClassVar[ClassifierStart] = "probe"

    def __post_init__(self) -> None:
        """Refuse an empty --per-class, --labels-only without --init, and --keep-head."""
        super().__post_init__()
        if not self.per_class:
            raise UserError("per_class: expected one or more numbers, found none; give one for each round")
        if self.labels_only and self.init is None:
            raise UserError("labels_only: expected a run to label by, found none; give --init")
        if self.keep_head:
            raise UserError(
                "keep_head: expected False, every training starts with a new classifier layer, found True; "
                "leave it out"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch

from engine.device import taken_device
from engine.evaluate.predict import predict
from engine.labels.select import (
    BalancedSelector,
    DuplicateCount,
    Selection,
    count_duplicates,
    suggest_per_class,
)
from engine.nets.classifier import Classifier, find_classifier, has_classifier
from engine.report.figures import Curve, draw_curves, save_picture
from engine.train.distributed import on_main, rank
from engine.train.phases import Labels, Phases, PhaseSummary, print_phases
from engine.train.run_config import on_device
from loaders import open_pack
from loaders.batch import Batch, Loader
from loaders.classification import divided_labels, unlabeled_images, views_in_order, views_of_labeled
from loaders.common.files import to_json, write_atomic
from loaders.options import LoaderOptions
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.subsample import read_label_table
from loaders.views import presets


class Rounds:
    """The loaders that all rounds share, and the steps of a round."""

    def __init__(self, config: Config, pack: Pack, phases: Phases) -> None:
        """Open the loaders."""
        self.config, self.pack, self.phases = config, pack, phases
        view = config.evaluation_view
        crop = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
        self.views = views_of_labeled(config, (crop,))
        self.test_loader = phases.test_images()
        self.pool_loader = phases.pool(view)

    def fine_tune(self, name: str, labels: Labels, init: Path | None, epochs: int) -> Path:
        """Train on labels with a new classifier layer; return the run folder of this phase."""
        phase = self.phases.fine_tune(
            name, init, False, epochs, labels, self.views, self.test_loader, cosine=True
        )
        return phase.out

    def select(self, run: Path) -> Selection:
        """Predict all unlabelled images with a run's classifier; select 1.25 x the largest P per class."""
        most, network = max(self.config.per_class), self.phases.network(run)
        device = self.phases.accelerator.device
        top_k, out, view = self.config.top_k, self.config.out, self.config.evaluation_view
        own = network.view == view  # else it is the network of --init, at another resolution
        loader = self.pool_loader if own else self.phases.pool(network.view)
        return select_balanced(network, loader, device, top_k, most + most // 4, out)

    def label(self, run: Path, cycle: int) -> tuple[LabelTable, ...]:
        """Select a round's pseudo-labels and write tables, counts and plot; or read the tables on disk.

        Returns:
            One table; with duplicates "all", a second one with the second classes of images, and so on.
        """
        folder = self.config.out / "labels"
        path = folder / f"round-{cycle}.parquet"
        if on_main(path.is_file):
            also = on_main(lambda: sorted(folder.glob(f"round-{cycle}-place-*.parquet")))
            return tuple(read_label_table(self.pack, found) for found in (path, *also))
        selection, per_class = self.select(run), self.config.per_class[cycle - 1]
        selected, duplicates = selection.best(per_class), self.config.duplicates
        kept = selected.by_place() if duplicates == "all" else [selected.one_class_each(duplicates)]
        table, *others = tables = [self.pack.signed(as_table(part, cycle)) for part in kept]
        between = np.linspace(1, 1.25 * max(self.config.per_class), 12).astype(int).tolist()
        points = sorted({*self.config.per_class, *between})
        counted = count_duplicates(selection, points)
        suggested = suggest_per_class(counted, self.config.max_duplicate_share)
        on_main(lambda: write_counts(folder, cycle, counted, suggested))
        for place, other in enumerate(others, start=2):
            target = folder / f"round-{cycle}-place-{place:03d}.parquet"
            on_main(lambda other=other, target=target: other.write(target))  # type: ignore[misc]
        on_main(lambda: table.write(path))  # written last: it marks the round as labelled
        self.phases.say(describe_round(cycle, per_class, table, counted, suggested))
        return tuple(tables)


def select_balanced(
    network: Classifier,
    loader: Loader[Batch],
    device: torch.device | str,
    top_k: int,
    per_class: int,
    out: Path,
) -> Selection:
    """Predict all images of a loader and keep the top K classes of each, then the top P images of each class.

    Args:
        loader: this rank's part of the images, by a loader in evaluation mode.
        device: where the network is.
        top_k: K, capped at the number of classes.
        per_class: P.
        out: folder whose `bad_rows.jsonl` names the images that could not be read.
    """
    selector = BalancedSelector(network.num_classes, min(top_k, network.num_classes), per_class)
    for part in predict(network, loader, device, out):
        selector.update(part.probabilities.numpy(), part.index.numpy())
    selector.join_ranks()
    return selector.finish()


def surest_labels(
    run: Path,
    pack: Pack,
    splits: tuple[str, ...],
    loader: LoaderOptions,
    top_k: int,
    per_class: int,
    out: Path,
    device: Device = "auto",
) -> LabelTable:
    """Label, for each class, the images of which a run's classifier is surest; an image gets one class only.

    Args:
        splits: splits to choose from.
        top_k: number of classes that an image may be selected for.
        per_class: number of images to select per class.
        out: see `select_balanced`.
    """
    place = taken_device(device)
    network = find_classifier(run, pack.classes, every_class=True).to(place)
    options = on_device(loader, place)
    with views_in_order(unlabeled_images(pack, splits), (network.view.policy(),), options) as images:
        selection = select_balanced(network, images, place, top_k, per_class, out)
    return as_table(selection.one_class_each("best"), 0)


def as_table(kept: Selection, cycle: int) -> LabelTable:
    """Turn a selection with one class per row into a label table."""
    confidence = np.minimum(kept.score, np.float32(1.0))
    return LabelTable.of(kept.row, kept.label, kept.num_classes, confidence, "pseudo", cycle)


def describe_round(
    cycle: int, per_class: int, table: LabelTable, counted: list[DuplicateCount], suggested: int | None
) -> str:
    """Summarise the labels of a round in one line."""
    used = next(entry for entry in counted if entry.per_class == per_class)
    advice = (
        "no P keeps duplicates few" if suggested is None else f"duplicates stay few up to P = {suggested}"
    )
    return (
        f"round {cycle}: P = {per_class}, {len(table):,} images labelled, {used.num_shared_rows:,} of "
        f"them for several classes ({used.share:.2%} extra labels), {used.num_short_classes} classes have "
        f"fewer than P; {advice}"
    )


def write_counts(folder: Path, cycle: int, counted: list[DuplicateCount], suggested: int | None) -> None:
    """Write the number of duplicates for each P, as JSON and as plots for light and dark pages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(entry), "share": entry.share} for entry in counted]
    write_atomic(folder / f"round-{cycle}-duplicates.json", to_json({"suggested": suggested, "counts": rows}))
    points = [entry.per_class for entry in counted]
    shares = Curve("extra labels, % of the selected", points, [100 * e.share for e in counted], True)
    shared = Curve("images under several classes", points, [e.num_shared_rows for e in counted], True)
    picture = draw_curves([shares, shared], "Duplicates over the images per class", "P, images per class")
    save_picture(folder / f"round-{cycle}-duplicates.png", picture)


def beside(true_labels: LabelTable, first: LabelTable, *others: LabelTable) -> Labels:
    """Join pseudo-labels to true ones; an image whose class is known keeps that class alone."""
    further = [table.of_rows(np.setdiff1d(table.row, true_labels.row)) for table in others]
    joined, further = true_labels.join(first), [table for table in further if len(table)]
    return (joined, *further) if further else joined


def run_rounds(config: Config, true_labels: LabelTable, rounds: Rounds) -> Path:
    """Predict, select, fine-tune on pseudo and true labels, fine-tune on true labels, with growing P.

    Returns:
        Run folder of the final network.
    """
    best = config.init
    if best is None or not has_classifier(best):
        best = rounds.fine_tune("start", true_labels, config.init, config.first_epochs)
    top1 = rounds.phases.validate(best) if config.go_on_from == "best" else 0.0
    for cycle in range(1, len(config.per_class) + 1):
        labels = beside(true_labels, *rounds.label(best, cycle))
        tuned = rounds.fine_tune(f"round-{cycle}-pseudo", labels, best, config.epochs)
        newest = rounds.fine_tune(f"round-{cycle}-true", true_labels, tuned, config.true_epochs)
        if config.go_on_from == "best":
            found = rounds.phases.validate(newest)
            if found < top1:  # on a tie the later network is kept: it has seen more images
                said = f"validation {found:.1%}, below {top1:.1%}; going on from {best}"
                rounds.phases.say(f"round {cycle}: {said}")
                continue
            top1 = found
        best = newest
    return best


def run(config: Config) -> list[PhaseSummary]:
    """Run all rounds and write the final classifier into --out, or only write labels; return the trainings.

    Raises:
        UserError: --go-on-from best, but no validation images.
    """
    pack = open_pack(config.pack, config.loader.store)
    division = divided_labels(pack, config)
    if division.validation is None and config.go_on_from == "best":
        raise UserError(
            f"go_on_from: expected validation images to tell the best by, found {division.said}; give "
            "--validation-split or --validation-share"
        )
    with Phases("self_training", config, pack, division, pack_fingerprint(pack)) as phases:
        rounds = Rounds(config, pack, phases)
        if config.labels_only and config.init is not None:
            rounds.label(config.init, 1)
            return []
        phases.finish(run_rounds(config, division.training, rounds), rounds.test_loader)
        return phases.done


def main() -> None:
    """Parse the command line and run the command."""
    config = command_line(Config, __doc__)
    phases = run(config)
    if phases:
        print_phases("self_training", phases)
    elif rank() == 0:
        print(f"self_training: labels alone -> {config.out / 'labels'}")


if __name__ == "__main__":
    run_command(main)
