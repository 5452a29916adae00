r"""Active learning: ask for the labels that would tell most.

Example:
    python recipes/active.py --pack packs/mine --run runs/fixmatch --embedding runs/barlow --out runs/ask

Whoever labels fills in the column `label` of request.csv with class names; then

    python recipes/active.py --pack packs/mine --filled runs/ask/request.csv --out runs/bought

writes bought.parquet, a label table for the `--extra-labels` of every recipe. In experiments `--oracle`
takes the labels from the pack's own table instead and writes bought.parquet at once.

Source: Zhou, Wan, Li 2021, section 3.4: embeddings, k-means with cosine similarity in 200 clusters, and of
each cluster the 64 images with the smallest margin of confidence.

The algorithm box is `choose`; its parts are `engine.active` and `engine.clusters`.
"""

from __future__ import annotations

import engine  # noqa: F401 - first of all: it says how OpenMP waits, before torch reads that

# isort: split
import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from engine.active import margins, random_choice, smallest, smallest_per_cluster
from engine.bad_rows import describe_bad_rows, forget_bad_rows
from engine.classifier import find_classifier
from engine.clusters import kmeans
from engine.distributed import refuse_ranks
from engine.evaluate import extract_features
from engine.files import check_folder, write_atomic
from engine.networks import load_backbone
from engine.predict import predict
from engine.run_config import Loading, LoadingOptions
from loaders import BackendName, build_loader, open_pack
from loaders.checks import check_whole
from loaders.epochs import EpochLoader
from loaders.errors import UserError, check_numbers, run_command
from loaders.packs import LabelTable, Pack
from loaders.packs.labels import MAX_CYCLE
from loaders.packs.subsample import training_labels
from loaders.views.evaluation import EvaluationView

Strategy = Literal["cluster_margin", "margin", "random"]
COLUMNS = ("row", "key", "cluster", "margin", "guess", "label")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Choose images to have labelled, or turn the labels given into a table."""

    pack: Path
    """Folder that tools/pack_dataset.py wrote, or the URL of one in a store."""
    out: Path
    """Folder for the request and the labels."""
    run: Path | None = None
    """Run with the classifier whose margins count."""
    embedding: Path | None = None
    """Run whose backbone gives the embeddings; --run by default. Report: the unsupervised one."""
    filled: Path | None = None
    """A request.csv with its labels filled in: write bought.parquet and do nothing else."""
    oracle: bool = False
    """Take the labels from the pack's own table, for experiments."""
    strategy: Strategy = "cluster_margin"
    """The report's, or the smallest margins of all images, or images at random, as baselines."""
    clusters: int = 200
    """Clusters of k-means. Report: 200, for 800 classes of which many are alike."""
    per_cluster: int = 64
    """Images of each cluster; the baselines take clusters * per_cluster in all. Report: 64."""
    unlabeled_splits: tuple[str, ...] = ("unlabeled",)
    """Splits to choose from."""
    labeled_split: str = "train"
    """Split whose true labels are known already."""
    labels_per_class: int | None = None
    """Use only so many of those labels per class; all by default."""
    label_seed: int = 0
    """Seed of the choice of those labels."""
    extra_labels: tuple[Path, ...] = ()
    """Label tables bought before: their images are not asked for again. No pseudo-labels here."""
    cycle: int = 1
    """Number of this request, kept in the table."""
    seed: int = 0
    """Seed of the clusters, and of the random baseline."""
    resolution: int | None = None
    """Side of the views; that of the run's network by default."""
    batch_size: int = 256
    """Images per forward pass; no influence on the result."""
    backend: BackendName = "auto"
    """Loader backend, see docs/backends.md; auto: stream for a store, else cpu or the fastest measured."""
    num_threads: int = 2
    """Decoding threads."""
    loading: LoadingOptions = field(default_factory=Loading)
    """Damage and delay."""

    def __post_init__(self) -> None:
        """Refuse numbers that choose nothing."""
        check_numbers(
            self, ("clusters", "per_cluster", "resolution", "batch_size", "num_threads", "timeout_s")
        )
        check_whole("cycle", self.cycle, 0, MAX_CYCLE, "number the requests from 1 on")


@dataclass(frozen=True)
class Request:
    """Images to have labelled, in the order of their rows.

    Attributes:
        row: int64 [M], rows of the pack.
        cluster: int64 [M]; -1 where the strategy has none.
        margin: float32 [M], lead of the most probable class over the second.
        guess: int64 [M], the most probable class.
        confidence: float32 [M], its probability.
    """

    row: NDArray[np.int64]
    cluster: NDArray[np.int64]
    margin: NDArray[np.float32]
    guess: NDArray[np.int64]
    confidence: NDArray[np.float32]


def pool_loader(config: Config, pack: Pack, view: EvaluationView) -> EpochLoader:
    """Build a loader of the images that have no label yet, as a network is shown them."""
    pool = pack.pool(config.unlabeled_splits)
    known = training_labels(
        pack, config.labeled_split, config.labels_per_class, config.label_seed, config.extra_labels
    )
    open_positions = np.flatnonzero(pool.labels(known) < 0)
    if len(open_positions) == 0:
        raise UserError("active learning: expected images without a label, found none; name other splits")
    if config.oracle:
        ask_oracle(pack, pool.rows(open_positions), config.cycle)  # before every image is predicted
    return build_loader(
        pool.take(open_positions),
        views=(view.policy(),),
        batch_size=config.batch_size,
        mode="eval",
        backend=config.backend,
        device="cuda" if torch.cuda.is_available() else "cpu",
        num_threads=config.num_threads,
        channels_last=True,
        **asdict(config.loading),
    )


def choose(config: Config, pack: Pack) -> Request:
    """Embed, cluster, and take the smallest margins of each cluster; or as the baselines do."""
    if config.run is None:
        raise UserError("active learning: expected --run, whose margins to use, or --filled, found neither")
    network = find_classifier(config.run, pack.classes)
    network = network.at(config.resolution or network.resolution)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = pool_loader(config, pack, network.view)
    try:
        parts = list(predict(network.to(device), loader, device, config.out))
        probabilities = torch.cat([part.probabilities for part in parts]).numpy()
        rows = torch.cat([part.index for part in parts]).numpy()
        margin = margins(probabilities)
        cluster = np.full(len(rows), -1, np.int64)
        if config.strategy == "cluster_margin":
            backbone = network.backbone
            if config.embedding is not None:
                backbone = load_backbone(config.embedding, network.resolution)
            features = extract_features(backbone.to(device), loader, device, config.out)
            points, count = features.h.numpy(), config.clusters
            cluster = kmeans(points, count, config.seed, spherical=True).assignment
    finally:
        loader.close()
    budget = config.clusters * config.per_cluster
    if config.strategy == "cluster_margin":
        chosen = smallest_per_cluster(margin, cluster, config.clusters, config.per_cluster)
    elif config.strategy == "margin":
        chosen = smallest(margin, budget)
    else:
        chosen = random_choice(len(rows), budget, config.seed)
    chosen = chosen[np.argsort(rows[chosen])]
    guess = probabilities.argmax(1)
    return Request(rows[chosen], cluster[chosen], margin[chosen], guess[chosen], probabilities.max(1)[chosen])


def write_request(config: Config, pack: Pack, request: Request) -> None:
    """Write request.csv, to fill in, and request.parquet with the network's own guesses, to correct."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = (request.row, request.cluster, request.margin, request.guess)
    for row, cluster, margin, guess in zip(*(column.tolist() for column in columns), strict=True):
        writer.writerow((row, pack.key(row), cluster, f"{margin:.6f}", pack.classes[guess], ""))
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "request.csv", text.getvalue().encode())
    confidence = np.minimum(request.confidence, np.float32(1.0))
    classes = len(pack.classes)
    table = LabelTable.of(request.row, request.guess, classes, confidence, "guess", config.cycle)
    table.write(config.out / "request.parquet")


def read_filled(path: Path, pack: Pack, cycle: int) -> LabelTable:
    """Read a request whose labels a human filled in; rows left empty are left out.

    Raises:
        UserError: no such file, other columns, an unknown class, a wrong row, or no label at all.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            lines, found = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"filled request: {path} cannot be read ({error}); check the path") from error
    if not {"row", "key", "label"} <= set(found):
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(found)}")
    classes = {name: number for number, name in enumerate(pack.classes)}
    labels: dict[int, int] = {}
    for number, line in enumerate(lines, start=2):
        name = (line["label"] or "").strip()
        if name and name not in classes:
            raise UserError(f"{path}, line {number}: expected a class of the pack, found {name!r}")
        if name:
            labels[_checked_row(line["row"], line["key"], pack, f"{path}, line {number}")] = classes[name]
    if not labels:
        raise UserError(f"{path}: expected labels in the column `label`, found none; fill some in")
    rows = np.array(sorted(labels), np.int64)
    values = np.array([labels[row] for row in rows.tolist()], np.int64)
    return LabelTable.of(rows, values, len(pack.classes), 1.0, "human", cycle)


def _checked_row(text: str, key: str, pack: Pack, where: str) -> int:
    row = int(text) if text.isdigit() else len(pack)
    if row >= len(pack) or pack.key(row) != key:
        raise UserError(f"{where}: row {text} is not {key!r} in {pack.path}; the request is of another pack")
    return row


def ask_oracle(pack: Pack, rows: NDArray[np.int64], cycle: int) -> LabelTable:
    """Return the pack's own labels of the requested images, int64 [M] rows.

    Raises:
        UserError: the pack does not know one of them.
    """
    labels = pack.labels.dense(len(pack))[rows]
    if (labels < 0).any():
        row = int(rows[labels < 0][0])
        raise UserError(f"oracle: row {row} ({pack.key(row)}) has no label in the pack; leave out --oracle")
    return LabelTable.of(rows, labels, len(pack.classes), 1.0, "oracle", cycle)


def run(config: Config) -> Path:
    """Do what the command says; return the request, or the table of labels where they are known."""
    refuse_ranks("active")
    check_folder(config.out)
    pack = open_pack(config.pack)
    bought = config.out / "bought.parquet"
    if config.filled is not None:
        read_filled(config.filled, pack, config.cycle).write(bought)
        return bought
    forget_bad_rows(config.out)
    request = choose(config, pack)
    write_request(config, pack, request)
    if not config.oracle:
        return config.out / "request.csv"
    ask_oracle(pack, request.row, config.cycle).write(bought)
    return bought


def main() -> None:
    """Run the command line."""
    path = run(tyro.cli(Config, description=__doc__))
    print(f"active: {path}{describe_bad_rows(path.parent)}")


if __name__ == "__main__":
    run_command(main)
