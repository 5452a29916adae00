r"""Active learning: choose the images whose labels would help training most, and ask for these labels.

Example:
    python recipes/active.py --pack packs/mine --run runs/fixmatch --init runs/barlow --out runs/ask

Open request.html, which works offline, give each image a class by a click or a key, and save the table.
Or fill in the column `label` of request.csv with class names. Then

    python recipes/active.py --pack packs/mine --filled runs/ask/request.csv --out runs/ask

writes bought.parquet, a label table for the `--extra-labels` of recipes with labels. In experiments
`--oracle` takes the labels from the pack's own table instead and writes bought.parquet at once.

As long as no image has a label, there is no classifier: use `--strategy random`, which needs no network, or
`--strategy k_centre`, which chooses images far apart in the features of any backbone (`--init`).

Sources: Zhou, Wan, Li 2021, section 3.4: embeddings, k-means with cosine similarity in 200 clusters, and from
each cluster the 64 images with the smallest margin of confidence. Sener and Savarese 2018 (arXiv 1708.00489),
algorithm 1, for k_centre.

The algorithm is in `choose`, its parts in `engine.labels.acquisition` and `engine.labels.clusters`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from engine.train.run_config import ForwardConfig, PackConfig
from loaders.common.checks import Count, check_numbers, check_whole
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from loaders.packs.manifest import MAX_CYCLE

Strategy = Literal["cluster_margin", "margin", "k_centre", "random"]


@dataclass(frozen=True, kw_only=True)
class Config(PackConfig, ForwardConfig):
    """Choose images to label, or turn given labels into a table."""

    out: Path
    """Folder for the request and the labels."""
    run: Path | None = None
    """Run whose classifier gives the margins; k_centre and random need none."""
    init: Path | None = None
    """Run, checkpoint, timm:NAME, hf:REPO or weights file whose backbone gives the features of cluster_margin
    and k_centre, see docs/pretrained.md; --run by default. Report: that of unsupervised pre-training."""
    backbone: str | None = None
    """Architecture of --init, if it is a weights file that does not name its own."""
    filled: Path | None = None
    """A request.csv with its labels filled in: turn it into bought.parquet and choose no images."""
    new_classes: bool = False
    """Append the classes that --filled names and the pack lacks to the pack, permanently."""
    oracle: bool = False
    """Read the labels from the pack's own table at once, for experiments."""
    strategy: Strategy = "cluster_margin"
    """cluster_margin: the smallest margins of each cluster (report); margin: the smallest margins of all
    images; k_centre: images farthest from all labelled and chosen ones; random: images at random."""
    clusters: Count = 200
    """Number of clusters of k-means. Report: 200, for 800 classes of which many are alike."""
    per_cluster: Count = 64
    """Images from each cluster; other strategies take --clusters x --per-cluster in all. Report: 64."""
    unlabeled_splits: tuple[str, ...] = ("unlabeled",)
    """Splits to choose from."""
    label_free: ClassVar[tuple[str, ...]] = ("labeled_split", "test_split")
    labeled_split: str = "train"
    """Split whose true labels are known already; "" for none."""
    labels_per_class: int | None = None
    """Regard only this many labels per class as known, of --labeled-split or, if it has none, of
    --extra-labels; all by default."""
    label_seed: int = 0
    """Seed of the choice of labels by --labels-per-class."""
    extra_labels: tuple[Path, ...] = ()
    """Label tables from earlier requests, whose images are not requested again; do not give pseudo-labels."""
    test_split: str | None = None
    """Split to measure on: neither its images nor copies of them are requested. By default test, if the
    pack has such a split; "" for none."""
    cycle: Count = 1
    """Number of this request, stored in the label table."""
    seed: int = 0
    """Seed of the clusters, of --strategy random, and of k_centre's first image if none has a label."""
    resolution: Count | None = None
    """Side length of the views in pixels; by default that of each network."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, an unfit --out, and --new-classes without --filled."""
        check_numbers(self)
        check_folder(self.out)
        if self.new_classes and self.filled is None:
            raise UserError("new_classes: expected --filled, whose classes it adds, found none; leave it out")
        check_whole("cycle", self.cycle, 0, MAX_CYCLE, "number the requests from 1 on")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from numpy.typing import NDArray

from engine.device import taken_device
from engine.evaluate.feature_store import FOLDER, FeatureStore, store_features
from engine.evaluate.predict import predict
from engine.evaluate.stored_loader import StoredLoader
from engine.labels.acquisition import k_centre, margins, random_choice, smallest, smallest_per_cluster
from engine.labels.clusters import kmeans
from engine.labels.label_page import SHOWN_PX, label_page, refuse_filled, table_text
from engine.nets.backbones import architecture
from engine.nets.classifier import Classifier, find_classifier
from engine.nets.starts import find_start
from engine.train.bad_rows import describe_bad_rows, forget_bad_rows
from engine.train.distributed import refuse_ranks
from engine.train.run_config import on_device
from loaders import build_loader, open_pack
from loaders.batch import Batch, Loader
from loaders.common.files import write_atomic
from loaders.common.next_step import say_next
from loaders.epochs import EpochLoader
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.images.thumbnail import thumbnail
from loaders.packs.labels.class_names import write_class_names
from loaders.packs.labels.leaks import shared_rows
from loaders.packs.labels.subsample import has_labels, training_labels
from loaders.packs.sources.list_rows import column_names, read_rows
from loaders.views.evaluation import EvaluationView

_MANY_IMAGES = 2000
COLUMNS = ("row", "key", "cluster", "margin", "guess", "label")


@dataclass(frozen=True)
class Request:
    """Images to label, sorted by row.

    Attributes:
        row: int64 [M], rows of the pack.
        cluster: int64 [M]; -1 where the strategy has no clusters.
        margin: float32 [M], lead of the most probable class over the second; NaN without a classifier.
        guess: int64 [M], the most probable class; -1 without a classifier.
        confidence: float32 [M], probability of `guess`; 0 without a classifier.
    """

    row: NDArray[np.int64]
    cluster: NDArray[np.int64]
    margin: NDArray[np.float32]
    guess: NDArray[np.int64]
    confidence: NDArray[np.float32]


class Candidates:
    """The images to choose from, the images already labelled, and the networks that rate them."""

    def __init__(self, config: Config, pack: Pack) -> None:
        """Find the images and the networks; nothing is decoded yet.

        Raises:
            UserError: a network is missing or unfit, no image is left to label, or --oracle lacks a label.
        """
        needs_classifier = config.strategy in ("cluster_margin", "margin")
        if config.run is None and needs_classifier:
            raise UserError(
                "active learning: expected --run, which gives the margins, or --filled, found neither; give "
                "one of them, or --strategy k_centre or random, which need no classifier"
            )
        if config.run is None and config.init is None and config.strategy == "k_centre":
            raise UserError(
                "k_centre: expected --init or --run, whose features to spread over, found neither"
            )
        self.config, self.device = config, taken_device(config.device)
        self.classifier: Classifier | None = None
        if config.run is not None:
            network = find_classifier(config.run, pack.classes)
            self.classifier = network.at(config.resolution or network.resolution).to(self.device)
        self.start = None if config.init is None else find_start(config.init, config.backbone)
        known = known_labels(config, pack)
        self.open = open_images(config, pack, known)
        self.labelled = pack.pool(pack.splits).labeled_by(known) if len(known) else None
        if config.oracle:
            ask_oracle(pack, self.rows, config.cycle)  # fails, if it does, before the slow prediction

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the images to choose from, int64 [N], increasing."""
        return self.open.rows(np.arange(len(self.open)))

    def predict(self) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return rows, [N], and probabilities, [N, C], of the readable images; None without a classifier."""
        if self.classifier is None:
            return None
        with self.shown(self.open) as loader:
            parts = list(predict(self.classifier, loader, self.device, self.config.out))
        rows, probabilities = [p.index for p in parts], [p.probabilities for p in parts]
        return torch.cat(rows).numpy(), torch.cat(probabilities).numpy()

    @contextmanager
    def shown(self, split: Split) -> Iterator[Loader[Batch]]:
        """Open the classifier's input: images, or their stored features if its own backbone made them."""
        assert self.classifier is not None
        with self.loader(split, self.classifier.view) as loader:
            store = self.store(split) if self.uses_features and self.same_backbone else None
            yield loader if store is None else StoredLoader(loader, store, self.device)

    @property
    def uses_features(self) -> bool:
        """Whether the strategy uses features."""
        return self.config.strategy in ("cluster_margin", "k_centre")

    @cached_property
    def same_backbone(self) -> bool:
        """Whether the stored features are those of the classifier's own backbone on the same views."""
        assert self.classifier is not None
        if self.start is None:
            return True
        start, own = self.start.at(self.config.resolution), self.classifier
        if start.view != own.view or architecture(start.backbone) != architecture(own.backbone_name):
            return False
        weights, own_weights = start.load().state_dict(), own.backbone.state_dict()
        return all(torch.equal(weights[name], tensor.cpu()) for name, tensor in own_weights.items())

    def features(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return the rows of a split's readable images, int64 [N], and their features, float16 [N, D]."""
        store = self.store(split)
        found = store.features(np.full(len(store.rows), -1, np.int64))
        wanted = np.isin(found.index.numpy(), split.rows(np.arange(len(split))))
        if wanted.all():
            return found.index.numpy(), found.h.numpy()
        return found.index.numpy()[wanted], found.h.numpy()[wanted]

    def store(self, split: Split) -> FeatureStore:
        """Return the stored features of the pool that contains a split, computed if they are missing."""
        if self.start is not None:
            start = self.start.at(self.config.resolution)
            backbone, view = start.load(), start.view
        else:
            assert self.classifier is not None
            backbone, view = self.classifier.backbone, self.classifier.view
        pool, out = self.pool(split), self.config.out
        with self.loader(pool, view) as loader:
            network, folder = backbone.to(self.device), out / FOLDER
            return store_features(network, loader, pool, self.device, folder, out)

    def pool(self, split: Split) -> Split:
        """Return the images to store features of: the same for every split that is in them, or else all."""
        names = [*self.config.unlabeled_splits, *filter(None, [self.config.labeled_split])]
        pack = split.pack
        pool = pack.pool([name for name in names if name in pack.splits])
        wanted, there = split.rows(np.arange(len(split))), pool.rows(np.arange(len(pool)))
        return pool if np.isin(wanted, there).all() else pack.pool(pack.splits)

    def loader(self, split: Split, view: EvaluationView) -> EpochLoader:
        """Open a loader of images in a network's evaluation view."""
        options, size = on_device(self.config.loader, self.device), self.config.batch_size
        return build_loader(split, (view.policy(),), size, options=options, mode="eval")


def known_labels(config: Config, pack: Pack) -> LabelTable:
    """Return the labels that are known already, possibly none."""
    if not config.extra_labels and not has_labels(pack, config.labeled_split):
        return LabelTable.of(np.zeros(0, np.int64), np.zeros(0, np.int64), len(pack.classes))
    few = (config.labels_per_class, config.label_seed, config.extra_labels)
    return training_labels(pack, config.labeled_split, *few)


def open_images(config: Config, pack: Pack, known: LabelTable) -> Split:
    """Return the images that may be requested: unlabelled, and neither test images nor copies of them."""
    pool = pack.pool(config.unlabeled_splits)
    rows = pool.rows(np.flatnonzero(pool.labels(known) < 0))
    test_split = "test" if config.test_split is None and "test" in pack.splits else config.test_split
    if test_split:
        own, copies = shared_rows(pack, rows, pack.split(test_split))
        if (own | copies).any():
            counts = f"{own.sum():,} rows and {copies.sum():,} copies of split {test_split!r}"
            print(f"active: not asked for, since measured on: {counts}", file=sys.stderr)
        rows = rows[~(own | copies)]
    if len(rows) == 0:
        raise UserError("active learning: expected images without a label, found none; name other splits")
    everything = pack.pool(pack.splits)  # all rows, so that a row's position is its number
    return everything.take(rows)


def choose(config: Config, pack: Pack) -> Request:
    """Embed, cluster, and take the smallest margins of each cluster; or follow another strategy."""
    candidates, budget = Candidates(config, pack), config.clusters * config.per_cluster
    rows, predicted = candidates.rows, candidates.predict()
    if predicted is not None:
        rows = predicted[0]
    if candidates.uses_features:
        rows, features = candidates.features(candidates.open)  # the same readable rows
    cluster, margin = np.full(len(rows), -1, np.int64), np.full(len(rows), np.nan, np.float32)
    guess, confidence = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.float32)
    if predicted is not None:
        probabilities = predicted[1]
        margin, guess, confidence = margins(probabilities), probabilities.argmax(1), probabilities.max(1)
    if config.strategy == "cluster_margin":
        cluster = kmeans(features, config.clusters, config.seed, spherical=True).assignment
        chosen = smallest_per_cluster(margin, cluster, config.clusters, config.per_cluster)
    elif config.strategy == "margin":
        chosen = smallest(margin, budget)
    elif config.strategy == "k_centre":
        known = None if candidates.labelled is None else candidates.features(candidates.labelled)[1]
        chosen = k_centre(features, budget, config.seed, known)
    else:
        chosen = random_choice(len(rows), budget, config.seed)
    chosen = chosen[np.argsort(rows[chosen])]
    return Request(rows[chosen], cluster[chosen], margin[chosen], guess[chosen], confidence[chosen])


def write_request(config: Config, pack: Pack, request: Request) -> None:
    """Write request.html to label on, request.csv to fill in, and request.parquet with guesses, if any."""
    cells: list[tuple[str, ...]] = []
    columns = (request.row, request.cluster, request.margin, request.guess)
    for row, cluster, margin, guess in zip(*(column.tolist() for column in columns), strict=True):
        shown = ("", "") if guess < 0 else (f"{margin:.6f}", pack.classes[guess])
        cells.append((str(row), pack.key(row), str(cluster), *shown))
    config.out.mkdir(parents=True, exist_ok=True)
    rows = request.row.tolist()
    name = f"{pack.path.resolve()} {config.cycle}"
    side = SHOWN_PX if len(rows) <= _MANY_IMAGES else SHOWN_PX // 2  # 12,800 larger pictures take 100 MB
    page = label_page(name, COLUMNS, cells, pack.classes, lambda i: thumbnail(pack, rows[i], side))
    write_atomic(config.out / "request.html", page.encode())
    write_atomic(config.out / "request.csv", table_text(COLUMNS, cells).encode())
    if (request.guess < 0).any():
        return
    confidence = np.minimum(request.confidence, np.float32(1.0))
    classes = len(pack.classes)
    table = LabelTable.of(request.row, request.guess, classes, confidence, "guess", config.cycle)
    pack.signed(table).write(config.out / "request.parquet")


def read_filled(path: Path, pack: Pack, cycle: int, new_classes: bool = False) -> LabelTable:
    """Read a request whose labels a person filled in; skip rows without a label.

    Args:
        path: request.csv, as request.html saves it.
        pack: pack of the request; new classes are added to it, in memory and on disk.
        cycle: number of the request, stored in the table.
        new_classes: accept classes that the pack does not have.

    Raises:
        UserError: the file cannot be read, does not fit the pack or has no label; or the pack has no classes.
    """
    lines = list(read_rows(path, short=True))
    found = column_names(lines)
    if lines and not {"row", "key", "label"} <= set(found):
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(found)}")
    names = [str(line.get("label") or "").strip() for line in lines]
    added = sorted({name for name in names if name} - set(pack.classes)) if new_classes else []
    classes = {name: number for number, name in enumerate((*pack.classes, *added))}
    if not classes:
        raise UserError(
            f"filled request: the pack {pack.path} names no classes; name them with tools/labels.py import "
            "--classes, or take those of the request by --new-classes"
        )
    labels: dict[int, int] = {}
    for number, (line, name) in enumerate(zip(lines, names, strict=True), start=2):
        if name and name not in classes:
            raise UserError(
                f"{path}, line {number}: expected a class of the pack, found {name!r}; --new-classes adds it"
            )
        if name:
            labels[_checked_row(str(line["row"]), str(line["key"]), pack, f"{path}, line {number}")] = (
                classes[name]
            )
    if not labels:
        raise UserError(f"{path}: expected labels in the column `label`, found none; fill some in")
    if added:
        write_class_names(pack.path, tuple(classes))
        pack.classes = tuple(classes)
        print(f"active: new classes {', '.join(added)}; {len(classes)} in all")
    rows = np.array(sorted(labels), np.int64)
    values = np.array([labels[row] for row in rows.tolist()], np.int64)
    return LabelTable.of(rows, values, len(pack.classes), 1.0, "human", cycle)


def _checked_row(text: str, key: str, pack: Pack, where: str) -> int:
    row = int(text) if text.isdigit() else len(pack)
    if row >= len(pack) or pack.key(row).strip() != key.strip():
        raise UserError(f"{where}: row {text} is not {key!r} in {pack.path}; the request is of another pack")
    return row


def ask_oracle(pack: Pack, rows: NDArray[np.int64], cycle: int) -> LabelTable:
    """Return the pack's own labels of some rows, int64 [M].

    Raises:
        UserError: the pack has no label for one of the rows.
    """
    labels = pack.labels.dense(len(pack))[rows]
    if (labels < 0).any():
        row = int(rows[labels < 0][0])
        raise UserError(f"oracle: row {row} ({pack.key(row)}) has no label in the pack; leave out --oracle")
    return LabelTable.of(rows, labels, len(pack.classes), 1.0, "oracle", cycle)


def run(config: Config) -> Path:
    """Run the command; return the path of the page, or of the label table with --filled or --oracle."""
    refuse_ranks("active")
    pack = open_pack(config.pack, config.loader.store)
    bought = config.out / "bought.parquet"
    if config.filled is not None:
        pack.signed(read_filled(config.filled, pack, config.cycle, config.new_classes)).write(bought)
        return bought
    refuse_filled(config.out / "request.csv")  # before the slow prediction of all images
    forget_bad_rows(config.out)
    request = choose(config, pack)
    write_request(config, pack, request)
    if not config.oracle:
        return config.out / "request.html"
    pack.signed(ask_oracle(pack, request.row, config.cycle)).write(bought)
    return bought


def main() -> None:
    """Parse the command line and run the command."""
    config = command_line(Config, __doc__)
    path = run(config)
    print(f"active: {path}{describe_bad_rows(path.parent)}")
    if path.suffix == ".parquet":
        out = path.parent.parent / "more-labels"
        begun = ("--pack", config.pack, "--extra-labels", path, "--out", out)
        say_next("recipes/supervised.py", *begun)
    else:
        filled = path.with_name("request.csv")
        print(f"open {path}, and save the table in the place of {filled}")
        say_next("recipes/active.py", "--pack", config.pack, "--filled", filled, "--out", config.out)


if __name__ == "__main__":
    run_command(main)
