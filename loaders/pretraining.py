"""The loaders of recipes without labels, from the fields that those recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from loaders.build import BackendName, build_loader
from loaders.epochs import EpochLoader
from loaders.packs import open_pack
from loaders.views import presets
from loaders.views.policy import ViewPolicy


class PretrainingFields(Protocol):
    """The fields of a recipe's configuration that say which images to train on."""

    @property
    def pack(self) -> Path:
        """Folder of the pack."""

    @property
    def split(self) -> str:
        """Split to train on."""

    @property
    def resolution(self) -> int:
        """Side of the views."""

    @property
    def backend(self) -> BackendName:
        """See `build_loader`."""


class PretrainingLoaders:
    """Builds the loaders of one run: its views, and images as they are to measure features on."""

    def __init__(self, fields: PretrainingFields, views: tuple[ViewPolicy, ...]) -> None:
        """Open the pack.

        Args:
            fields: of the run.
            views: of the training.
        """
        self.fields, self.views = fields, views
        self.pack = open_pack(fields.pack)

    def training(self, **options: Any) -> EpochLoader:
        """Build the loader of the views; for `options` see `build_loader`."""
        split = self.pack.split(self.fields.split)
        return build_loader(split, self.views, backend=self.fields.backend, **options)

    def in_order(self, split: str, **options: Any) -> EpochLoader:
        """Build the loader of a split's images in order, without augmentation; see `build_loader`."""
        views = (presets.evaluation(self.fields.resolution),)
        backend = self.fields.backend
        return build_loader(self.pack.split(split), views, mode="eval", backend=backend, **options)
