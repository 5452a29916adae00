"""The loaders of recipes with labels, from the fields that those recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from loaders.batch import Loader
from loaders.build import build_loader, build_paired_loader
from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.epochs import EpochLoader, PairedLoader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.labels.leaks import check_leak
from loaders.packs.labels.subsample import has_labels, training_labels
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import ViewPolicy

_ROWS_IN_ORDER = 256  # of an evaluation batch on one rank; no influence on the result


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

    @property
    def batch_size(self) -> int:
        """Labelled images per step over all ranks."""

    @property
    def evaluation_view(self) -> EvaluationView:
        """What the run is measured with."""


class SemiFields(LabelFields, Protocol):
    """The fields of a recipe that trains on labelled and unlabelled images together."""

    @property
    def unlabeled_splits(self) -> tuple[str, ...]:
        """Splits of the unlabelled images; labelled images in them stand in both streams."""

    @property
    def mu(self) -> int:
        """Unlabelled images per labelled one."""


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


class LabeledLoaders:
    """Builds the loaders of a run that trains on labelled images: these, and the test images in order."""

    def __init__(self, pack: Pack, fields: LabelFields, views: tuple[ViewPolicy, ...]) -> None:
        """Choose the labels.

        Args:
            pack: the pack.
            fields: of the run.
            views: of the labelled images.

        Raises:
            UserError: see `chosen_labels`.
        """
        self.pack, self.fields, self.views = pack, fields, views
        self.labels = chosen_labels(pack, fields)

    def training(self, options: LoaderOptions) -> Loader[Any]:
        """Build the loader of the views."""
        return build_labeled_loader(self.pack, self.labels, self.views, self.fields.batch_size, options)

    def in_order(self, split: str, options: LoaderOptions) -> EpochLoader:
        """Build the loader of a split's images in order, as the run is measured."""
        return build_pool_loader(self.pack, (split,), self.fields.evaluation_view, options)

    def testing(self, options: LoaderOptions) -> EpochLoader | None:
        """Build the loader of the test images; None where the run has none."""
        return self.in_order(self.fields.test_split, options) if self.fields.test_split else None


class SemiLoaders(LabeledLoaders):
    """Builds the loaders of a run that trains on labelled and unlabelled images together."""

    def __init__(
        self,
        pack: Pack,
        fields: SemiFields,
        labeled_views: tuple[ViewPolicy, ...],
        unlabeled_views: tuple[ViewPolicy, ...],
        balanced: bool = False,
    ) -> None:
        """Choose the labels.

        Args:
            pack: the pack.
            fields: of the run.
            labeled_views: of the labelled images.
            unlabeled_views: of the unlabelled images.
            balanced: see `build_paired_loader`.

        Raises:
            UserError: see `chosen_labels`.
        """
        super().__init__(pack, fields, labeled_views)
        self.semi_fields, self.unlabeled_views, self.balanced = fields, unlabeled_views, balanced

    def training(self, options: LoaderOptions) -> PairedLoader:
        """Build the paired loader of all rows with a label and of all images of the unlabelled splits."""
        return build_paired_loader(
            self.pack.pool(self.pack.splits),
            self.pack.pool(self.semi_fields.unlabeled_splits),
            (self.views, self.unlabeled_views),
            self.fields.batch_size,
            self.semi_fields.mu,
            options=options,
            labels=self.labels,
            balanced=self.balanced,
        )


def build_labeled_loader(
    pack: Pack,
    labels: LabelTable,
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    options: LoaderOptions,
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
    rows, fitting = fit_to_ranks(rows, batch_size, options.num_ranks, pairs=True)
    return build_loader(rows, views, fitting, options=options, labels=labels)


def build_pool_loader(
    pack: Pack, splits: tuple[str, ...], view: EvaluationView, options: LoaderOptions
) -> EpochLoader:
    """Build an evaluation loader of all images of some splits, such as those to predict labels for.

    Args:
        pack: the pack.
        splits: names of the splits.
        view: what the network is shown.
        options: see `build_loader`.
    """
    batch_size = _ROWS_IN_ORDER * options.num_ranks
    return build_loader(pack.pool(splits), (view.policy(),), batch_size, options=options, mode="eval")
