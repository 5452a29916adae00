"""The loaders of recipes with labels, from the fields that those recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from loaders.build import BackendName, build_loader, build_paired_loader
from loaders.epochs import EpochLoader, PairedLoader
from loaders.packs import LabelTable, Pack
from loaders.packs.subsample import training_labels
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


def chosen_labels(pack: Pack, fields: LabelFields) -> LabelTable:
    """Return the labels that a recipe's configuration asks for."""
    return training_labels(
        pack, fields.labeled_split, fields.labels_per_class, fields.label_seed, fields.extra_labels
    )


def build_labeled_loader(
    pack: Pack, labels: LabelTable, views: tuple[ViewPolicy, ...], batch_size: int, **options: Any
) -> EpochLoader:
    """Build a training loader of the rows that a table labels, whatever their split.

    Args:
        pack: the pack.
        labels: their labels.
        views: see `build_loader`.
        batch_size: global; where there are fewer rows, all of them that divide evenly over pairs and ranks.
        options: see `build_loader`.
    """
    rows = pack.pool(pack.splits).labeled_by(labels)
    part = 2 * int(options.get("num_ranks", 1))  # an even part for every rank: images are mixed in pairs
    fitting = len(rows) - len(rows) % part if len(rows) < batch_size else batch_size
    return build_loader(rows, views, fitting or len(rows), labels=labels, **options)


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
