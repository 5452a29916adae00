"""A loader whose batches hold stored features in place of images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from engine.evaluate.feature_store import FeatureStore
from loaders.batch import Batch
from loaders.epochs import EpochLoader


class StoredLoader:
    """Yields the batches of another loader, with features [B, D] in place of views.

    Each rank gets the same rows as from the other loader. Rows without features are marked as invalid.

    If the store has V views, epoch e of training uses view e modulo V, and evaluation uses all views.
    `Classifier.forward` accepts features in place of images.
    """

    def __init__(self, loader: EpochLoader, store: FeatureStore, device: torch.device | str) -> None:
        """Prepare the batches.

        Args:
            loader: loader of the images, which gives rows only and decodes nothing; closed with this one.
            store: features of all images of the loader, and possibly of others.
            device: where the batches go.
        """
        self._loader, self._store, self._device = loader, store, device
        split, labels = loader.images
        rows = split.rows(np.arange(len(split)))
        places = np.full(len(split.pack), -1, np.int64)
        places[store.rows] = np.arange(len(store.rows))
        self._rows, self._places = rows, places[rows]
        assert self._places.min() >= 0, "the store has every image of the loader"
        self._labels: NDArray[np.int64] = np.full(len(rows), -1, np.int64) if labels is None else labels

    @property
    def steps_per_epoch(self) -> int:
        """See `Loader`."""
        return self._loader.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """See `Loader`."""
        return self._loader.batch_size

    @property
    def fingerprint(self) -> dict[str, str]:
        """See `Loader`; the name of the store's folder is a hash that covers the network and the views."""
        return {**self._loader.fingerprint, "features": self._store.folder.name}

    @property
    def bad_rows(self) -> dict[int, str]:
        """Rows without features, because their images could not be read."""
        absent = self._rows[~self._store.present[self._places]]
        return dict.fromkeys(absent.tolist(), "it could not be read when its features were computed")

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """See `Loader`."""
        view = epoch % len(self._store.h)
        h = self._store.h if self._loader.pads else self._store.h[view : view + 1]
        for step in range(start_step, self.steps_per_epoch):
            positions, _, valid = self._loader.request(epoch, step)
            places = self._places[positions]
            found = [torch.from_numpy(one[places].astype(np.float32)).to(self._device) for one in h]
            rest = (self._labels[positions], self._rows[positions], valid & self._store.present[places])
            labels, index, kept = (torch.from_numpy(values).to(self._device) for values in rest)
            yield Batch(tuple(found), labels, index, kept)

    def close(self) -> None:
        """See `Loader`."""
        self._loader.close()
