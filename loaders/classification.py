"""The loaders of recipes with labels, from the fields that those recipes share."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from loaders.alternating import Alternating
from loaders.batch import Loader, PairedBatch
from loaders.build import Sampler, build_loader, build_paired_loader
from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.epochs import EpochLoader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.labels.leaks import check_leak
from loaders.packs.labels.subsample import training_labels
from loaders.packs.labels.validation import Division, ValidationFields, apart, divide_labels
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import Augmentation, ViewPolicy

_ROWS_IN_ORDER = 256  # default size of an evaluation batch per rank; the result does not depend on it


class LabelFields(ValidationFields, Protocol):
    """The fields of a recipe's configuration that loaders of labelled images need."""

    @property
    def labels_per_class(self) -> int | None:
        """Number of labels to use of each class; None for all. See `training_labels`."""

    @property
    def extra_labels(self) -> tuple[Path, ...]:
        """Files of further label tables."""

    @property
    def batch_size(self) -> int:
        """Labelled images per step over all ranks."""

    @property
    def evaluation_view(self) -> EvaluationView:
        """View of the images on which the run is evaluated."""


class TrainingFields(LabelFields, Protocol):
    """The fields of a recipe that trains on labels."""

    @property
    def balanced(self) -> bool:
        """Whether to draw every class equally often."""

    @property
    def flips(self) -> Literal["random", "in_turns"]:
        """How training views are flipped from epoch to epoch."""

    @property
    def test_flip(self) -> bool:
        """Whether to test mirrored images too."""

    @property
    def augment(self) -> tuple[Augmentation, ...]:
        """Augmentations to add to the labelled views."""


class SemiFields(TrainingFields, Protocol):
    """The fields of a recipe that trains on labelled and unlabelled images together."""

    @property
    def unlabeled_splits(self) -> tuple[str, ...]:
        """Splits of the unlabelled images."""

    @property
    def mu(self) -> int:
        """Unlabelled images per labelled one."""


def views_of_labeled(fields: TrainingFields, views: tuple[ViewPolicy, ...]) -> tuple[ViewPolicy, ...]:
    """Return the views of labelled images, adapted to a run's options."""
    fitted = _flipped(fields, fields.evaluation_view.fit(views))
    return tuple(presets.augmented(view, fields.augment) for view in fitted)


def _flipped(fields: TrainingFields, views: tuple[ViewPolicy, ...]) -> tuple[ViewPolicy, ...]:
    return tuple(map(presets.flipped_in_turns, views)) if fields.flips == "in_turns" else views


def chosen_labels(pack: Pack, fields: LabelFields) -> LabelTable:
    """Return the labels that a recipe's configuration selects; refuse labels of the test split.

    Raises:
        UserError: labels of test images or of copies of them, unless `allow_leak` is set; a test split that
            is missing or without labels; see also `training_labels`.
    """
    labels = training_labels(
        pack, fields.labeled_split, fields.labels_per_class, fields.label_seed, fields.extra_labels
    )
    if fields.test_split:
        check_measured(pack, fields.test_split)
        check_leak(pack, labels.row, pack.split(fields.test_split), fields.allow_leak)
    return labels


def divided_labels(pack: Pack, fields: TrainingFields) -> Division:
    """Return a recipe's labels, divided into those to train on and those to validate on.

    Raises:
        UserError: see `chosen_labels` and `divide_labels`.
    """
    return divide_labels(pack, chosen_labels(pack, fields), fields)


def check_measured(pack: Pack, split: str) -> None:
    """Refuse a test split in which no image has a label.

    Raises:
        UserError: the split has no label, or the pack has no such split.
    """
    pack.manifest.require_labels(pack.split(split).name, "test_split")


def fit_to_ranks(rows: Split, batch_size: int, num_ranks: int, pairs: bool = False) -> tuple[Split, int]:
    """Return rows and a batch size that fit each other and the number of ranks, even if rows are few.

    Args:
        batch_size: global; it is reduced if there are fewer rows.
        num_ranks: number of processes, each of which gets the same share of a batch.
        pairs: where the batch size is reduced, give each rank an even number of rows if there are enough,
            since images are mixed in pairs.

    Returns:
        The rows, repeated if there are fewer rows than ranks, and the global batch size.
    """
    if len(rows) < num_ranks:
        tell(f"labels: {len(rows)} for {num_ranks} processes; batches hold each image more than once")
        rows = rows.repeat(-(-num_ranks // len(rows)))
    if len(rows) >= batch_size:
        return rows, batch_size
    part = 2 * num_ranks if pairs and len(rows) >= 2 * num_ranks else num_ranks
    return rows, len(rows) - len(rows) % part


class LabeledLoaders:
    """Builds the loaders of a run on labelled images: for training, validation and testing."""

    def __init__(self, pack: Pack, fields: TrainingFields, views: tuple[ViewPolicy, ...]) -> None:
        """Choose the labels; `views` are the policies of the labelled images.

        Raises:
            UserError: see `divided_labels`.
        """
        self.pack, self.fields = pack, fields
        self.views = views_of_labeled(fields, views)
        self.division = divided_labels(pack, fields)
        self.labels = self.division.training
        self._replaced = False

    def with_labels(self, labels: LabelTable) -> Self:
        """Return a copy of these loaders that trains on other labels."""
        other = copy(self)
        other.labels, other.division = labels, replace(self.division, training=labels)
        other._replaced = True  # no option set the number of labels, so `training` gives no advice on it
        return other

    def training(self, options: LoaderOptions) -> Loader[Any]:
        """Build the training loader."""
        size, balanced = self.fields.batch_size, self.fields.balanced
        loader = build_labeled_loader(self.pack, self.labels, self.views, size, options, balanced)
        if (fitting := loader.batch_size) < size and not self._replaced:
            tell(
                f"batch_size: {fitting} instead of {size}, since {len(self.labels)} images are labelled; "
                f"give --batch-size {fitting}, or more labels"
            )
        return loader

    def validating(self, options: LoaderOptions) -> EpochLoader | None:
        """Build the loader of the validation images; None where there are none."""
        return validation_loader(self.pack, self.fields, self.division, options)

    def in_order(self, images: Split, options: LoaderOptions) -> EpochLoader:
        """Build a loader of images in order, with the run's evaluation view."""
        return views_in_order(images, (self.fields.evaluation_view.policy(),), options)

    def testing(self, options: LoaderOptions) -> EpochLoader | None:
        """Build the loader of the test images; None where the run has no test split."""
        return testing_loader(self.pack, self.fields, options)


class SemiLoaders(LabeledLoaders):
    """Builds the loaders of a run on labelled and unlabelled images together."""

    def __init__(
        self,
        pack: Pack,
        fields: SemiFields,
        labeled_views: tuple[ViewPolicy, ...],
        unlabeled_views: tuple[ViewPolicy, ...],
        with_labeled: bool = True,
        share: float = 1.0,
        turns: bool = False,
    ) -> None:
        """Choose the labels.

        Args:
            with_labeled: keep images with a label among the unlabelled ones too.
            share: share of the unlabelled images to use, chosen by the label seed; see `unlabeled_images`.
            turns: yield labelled and unlabelled batches in turns; see `Alternating`.

        Raises:
            UserError: see `divided_labels` and `unlabeled_images`.
        """
        super().__init__(pack, fields, labeled_views)
        self.semi_fields, self.turns = fields, turns
        self.unlabeled_views = _flipped(fields, fields.evaluation_view.fit(unlabeled_views))
        which = (fields.unlabeled_splits, self.division, with_labeled, share, fields.label_seed)
        self.unlabeled = unlabeled_images(pack, *which)

    def with_labels(self, labels: LabelTable) -> Self:
        """Return a copy of these loaders that trains on other labels.

        Images whose labels are dropped, and copies of these images, leave the unlabelled stream too.
        """
        other, unlabeled = super().with_labels(labels), self.unlabeled
        left_out = self.labels.of_rows(np.setdiff1d(self.labels.row, labels.row))
        rows = unlabeled.rows(np.arange(len(unlabeled)))
        if len(left_out):
            kept = unlabeled.take(np.flatnonzero(np.isin(rows, apart(self.pack, rows, left_out))))
            step = self.semi_fields.mu * self.fields.batch_size  # unlabelled rows of a step
            other.unlabeled = kept.repeat(-(-step // len(kept))) if 0 < len(kept) < step else kept
        return other

    def training(self, options: LoaderOptions) -> Loader[PairedBatch]:
        """Build the loader of the labelled and the unlabelled images, in pairs or in turns.

        Images set aside for validation, and copies of them, are not among the unlabelled images.
        """
        loader = build_paired_loader(
            self.pack.pool(self.pack.splits),
            self.unlabeled,
            self.views,
            self.unlabeled_views,
            self.fields.batch_size,
            self.semi_fields.mu,
            options=options,
            labels=self.labels,
            balanced=self.fields.balanced,
        )
        return Alternating(loader, self.semi_fields.mu) if self.turns else loader


def build_labeled_loader(
    pack: Pack,
    labels: LabelTable | tuple[LabelTable, ...],
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    options: LoaderOptions,
    balanced: bool = False,
) -> EpochLoader:
    """Build a training loader of the rows that have a label in a table, from all splits.

    Args:
        labels: one label table or several; with several, a row comes once for each of its labels.
        batch_size: global; `fit_to_ranks` reduces it if there are fewer rows.
        balanced: draw every class equally often; see `sampler` of `build_loader`.
    """
    rows = pack.pool(pack.splits).labeled_by(labels)
    rows, fitting = fit_to_ranks(rows, batch_size, options.num_ranks, pairs=True)
    sampler: Sampler | None = "balanced" if balanced else None
    return build_loader(rows, views, fitting, options=options, labels=labels, sampler=sampler)


def testing_loader(pack: Pack, fields: TrainingFields, options: LoaderOptions) -> EpochLoader | None:
    """Build the loader of the test images, mirrored too with `test_flip`; None without a test split."""
    if not fields.test_split:
        return None
    view = fields.evaluation_view
    views = (view.policy(), view.policy(mirrored=True)) if fields.test_flip else (view.policy(),)
    return views_in_order(pack.split(fields.test_split), views, options)


def validation_loader(
    pack: Pack, fields: LabelFields, division: Division, options: LoaderOptions
) -> EpochLoader | None:
    """Build the loader of the validation images; None where there are none."""
    if (labels := division.validation) is None:
        return None
    images = pack.pool(pack.splits).labeled_by(labels)
    return views_in_order(images, (fields.evaluation_view.policy(),), options, labels)


def views_in_order(
    images: Split,
    views: tuple[ViewPolicy, ...],
    options: LoaderOptions,
    labels: LabelTable | None = None,
    batch_size: int | None = None,
) -> EpochLoader:
    """Build a loader of images in order, with any views.

    Args:
        labels: label table of the images; the true labels by default.
        batch_size: global, `_ROWS_IN_ORDER` per rank by default; at most what all images need.
    """
    size = batch_size or _ROWS_IN_ORDER * options.num_ranks
    # A batch that the images do not fill is padded, and the network would compute the padding too.
    size = min(size, -(-len(images) // options.num_ranks) * options.num_ranks)
    return build_loader(images, views, size, options=options, mode="eval", labels=labels)


def unlabeled_images(
    pack: Pack,
    splits: tuple[str, ...],
    division: Division | None = None,
    with_labeled: bool = True,
    share: float = 1.0,
    seed: int = 0,
) -> Split:
    """Return the images of some splits, without those set aside for validation and copies of these.

    Args:
        division: how the run's labels are divided; with None, all images remain.
        with_labeled: also return images whose label is trained on.
        share: share of the remaining images to return; `seed` chooses them. With one seed, a larger share
            contains every smaller one.

    Raises:
        UserError: no image is left, or there is no such split.
    """
    pool = pack.pool(splits)
    rows = pool.rows(np.arange(len(pool)))
    kept = np.ones(len(pool), np.bool_)
    if division is not None and division.validation is not None and division.set_aside:
        kept &= np.isin(rows, apart(pack, rows, division.validation))
    if division is not None and not with_labeled:
        kept &= ~np.isin(rows, division.training.row)
    if share < 1.0:
        places = np.random.Generator(np.random.Philox(key=[seed, len(pool)])).permutation(len(pool))
        ranked = places[kept[places]]
        kept[ranked[max(1, round(share * len(ranked))) :]] = False
    if not kept.any():
        raise UserError(
            f"unlabelled images: expected some in {', '.join(splits)}, found only images that are labelled "
            "or set aside for validation; give other splits"
        )
    return pool if kept.all() else pool.take(np.flatnonzero(kept))


def build_rows_loader(
    pack: Pack, rows: NDArray[np.int64], view: EvaluationView, options: LoaderOptions, batch_size: int = 128
) -> EpochLoader:
    """Build an evaluation loader of some rows, in increasing order.

    Args:
        rows: int64 [K], strictly increasing.
        batch_size: global.
    """
    everything = pack.pool(pack.splits)  # all rows, so that a row's position is its number
    return views_in_order(everything.take(rows), (view.policy(),), options, batch_size=batch_size)
