"""The loaders of recipes with labels, from the fields that those recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from loaders.build import BackendName, build_loader, build_paired_loader
from loaders.epochs import EpochLoader, PairedLoader
from loaders.errors import UserError
from loaders.notice import tell
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.leaks import check_leak
from loaders.packs.subsample import has_labels, training_labels
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import ViewPolicy


class LabelFields(Protocol):
    """The fields of a recipe's configuration that say which labels to train on."""

    @property
    def labeled_split(self) -> str:
        """Split whose true labels are used."""

    @property
    def labels_per_class(self) -> int | None:
        """How many of them per class; None for all."""

    @property
    def label_seed(self) -> int:
        """Chooses which."""

    @property
    def extra_labels(self) -> tuple[Path, ...]:
        """Further label tables."""

    @property
    def test_split(self) -> str:
        """Split that is measured on; "" for none."""

    @property
    def allow_leak(self) -> bool:
        """Train on images of that split all the same."""


def chosen_labels(pack: Pack, fields: LabelFields) -> LabelTable:
    """Return the labels that a recipe's configuration asks for; none of them is one to measure on.

    Raises:
        UserError: labels of rows of the split that is measured on, or of copies of its images, unless that
            is allowed; a split without labels to measure on; see `training_labels`.
    """
    labels = training_labels(
        pack, fields.labeled_split, fields.labels_per_class, fields.label_seed, fields.extra_labels
    )
    if fields.test_split:
        check_measured(pack, fields.test_split)
        check_leak(pack, labels.row, pack.split(fields.test_split), fields.allow_leak)
    return labels


def check_measured(pack: Pack, split: str) -> None:
    """Refuse to measure on a split in which no image has a label.

    Raises:
        UserError: it has none, or there is no such split.
    """
    if not has_labels(pack, split):
        raise UserError(
            f"test_split: expected labels in {split!r}, found none; name another, or none where the recipe "
            'has a choice: --test-split ""'
        )


def fit_to_ranks(rows: Split, batch_size: int, num_ranks: int, pairs: bool = False) -> tuple[Split, int]:
    """Return rows and a batch size that fit each other and the ranks, where there are few rows.

    Args:
        rows: to train on.
        batch_size: global; smaller where there are fewer rows.
        num_ranks: number of processes, each of which gets the same share of a batch.
        pairs: give each rank an even share where there are rows enough, since images are mixed in pairs.

    Returns:
        The rows, each several times where there are fewer of them than ranks, and the batch size.
    """
    if len(rows) < num_ranks:
        tell(f"labels: {len(rows)} for {num_ranks} processes; each is in a batch more than once")
        rows = rows.repeat(-(-num_ranks // len(rows)))
    if len(rows) >= batch_size:
        return rows, batch_size
    part = 2 * num_ranks if pairs and len(rows) >= 2 * num_ranks else num_ranks
    return rows, len(rows) - len(rows) % part


def build_labeled_loader(
    pack: Pack, labels: LabelTable, views: tuple[ViewPolicy, ...], batch_size: int, **options: Any
) -> EpochLoader:
    """Build a training loader of the rows that a table labels, whatever their split.

    Args:
        pack: the pack.
        labels: their labels.
        views: see `build_loader`.
        batch_size: global; see `fit_to_ranks` for fewer rows.
        options: see `build_loader`.
    """
    rows = pack.pool(pack.splits).labeled_by(labels)
    rows, fitting = fit_to_ranks(rows, batch_size, int(options.get("num_ranks", 1)), pairs=True)
    return build_loader(rows, views, fitting, labels=labels, **options)


def build_semi_loader(
    pack: Pack,
    labels: LabelTable,
    unlabeled_splits: tuple[str, ...],
    labeled_views: tuple[ViewPolicy, ...],
    unlabeled_views: tuple[ViewPolicy, ...],
    **options: Any,
) -> PairedLoader:
    """Build a paired loader of all rows that a table labels and of all images of some splits.

    Args:
        pack: the pack.
        labels: of the labelled stream.
        unlabeled_splits: splits of the unlabelled stream; labelled images in them stand in both streams.
        labeled_views, unlabeled_views, options: see `build_paired_loader`.
    """
    return build_paired_loader(
        pack.pool(pack.splits),
        pack.pool(unlabeled_splits),
        labeled_views,
        unlabeled_views,
        labels=labels,
        **options,
    )


def build_pool_loader(
    pack: Pack, splits: tuple[str, ...], view: EvaluationView, backend: BackendName, **options: Any
) -> EpochLoader:
    """Build an evaluation loader of all images of some splits, such as those to predict labels for.

    Args:
        pack: the pack.
        splits: names of the splits.
        view: of the network that will see them.
        backend: see `build_loader`.
        options: see `build_loader`; `batch_size` is replaced by one for evaluation.
    """
    options["batch_size"] = 256 * int(options.get("num_ranks", 1))
    return build_loader(pack.pool(splits), (view.policy(),), mode="eval", backend=backend, **options)


def build_test_loader(
    pack: Pack, split: str, view: EvaluationView, backend: BackendName, **options: Any
) -> EpochLoader | None:
    """Build an evaluation loader of a labelled split; None where its name is empty; see above."""
    return build_pool_loader(pack, (split,), view, backend, **options) if split else None
