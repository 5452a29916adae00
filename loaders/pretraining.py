"""The loaders of recipes without labels, from the fields that those recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loaders.batch import Batch, Loader
from loaders.build import build_loader
from loaders.epochs import EpochLoader
from loaders.options import LoaderOptions
from loaders.packs import Split, open_pack
from loaders.packs.labels.validation import Division
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import ViewPolicy


class PretrainingFields(Protocol):
    """The fields of a recipe's configuration from which its loaders are built."""

    @property
    def pack(self) -> Path:
        """Folder or URL of the pack."""

    @property
    def split(self) -> str:
        """Split to train on."""

    @property
    def resolution(self) -> int:
        """Side of the views, pixels."""

    @property
    def batch_size(self) -> int:
        """Images per step over all ranks."""

    @property
    def evaluation_view(self) -> EvaluationView:
        """View of the images on which the run is evaluated."""

    @property
    def loader(self) -> LoaderOptions:
        """Options of the loaders, including how packs in a store are read."""


class PretrainingLoaders:
    """Builds the loaders of a run: of its training views, and of images without augmentation."""

    division: Division | None = None

    def __init__(
        self, fields: PretrainingFields, views: tuple[ViewPolicy, ...], test_split: str = ""
    ) -> None:
        """Open the pack.

        Args:
            test_split: split on which the run's own task is measured at its end; "" for none.
        """
        self.test_split = test_split
        self.fields, self.views = fields, fields.evaluation_view.fit(views)
        self.pack = open_pack(fields.pack, fields.loader.store)

    def training(self, options: LoaderOptions) -> EpochLoader:
        """Build the training loader."""
        split = self.pack.split(self.fields.split)
        return build_loader(split, self.views, self.fields.batch_size, options=options)

    def in_order(self, images: Split, options: LoaderOptions) -> EpochLoader:
        """Build a loader of images in order, without augmentation."""
        views = (self.fields.evaluation_view.policy(),)
        return build_loader(images, views, self.fields.batch_size, options=options, mode="eval")

    def testing(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Build the loader of the test images of the run's own task; None without a test split."""
        return self.in_order(self.pack.split(self.test_split), options) if self.test_split else None

    def validating(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Return None: the run has no labels to validate with."""
        return None
