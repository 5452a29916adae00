"""Runs that measure speed: training with fresh and repeated batches in turns, and the loader alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from engine.train.recipe import Recipe, StepOutput
from loaders.batch import Batch, Loader


class TakingTurns:
    """A loader that gives fresh batches for a window of steps, repeats the last one for a window, and so on.

    The difference between neighbouring windows is the time that loading adds to training. Two separate runs
    cannot show it: between them the speed of the machine drifts by more than this difference.
    """

    def __init__(self, loader: Loader[Any], window: int) -> None:
        """Begin with a window of fresh batches.

        Args:
            loader: closed by the caller.
            window: number of steps; should be the log window of the run.
        """
        self._loader, self._window = loader, window
        self._batch = None
        self.steps_per_epoch, self.batch_size = loader.steps_per_epoch, loader.batch_size
        self.fingerprint = loader.fingerprint

    @property
    def bad_rows(self) -> Mapping[int, str]:
        """The bad rows of the wrapped loader."""
        return self._loader.bad_rows

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yield one batch per step; a window may continue into the next epoch."""
        fresh = self._loader.epoch(epoch, start_step)
        for step in range(start_step, self.steps_per_epoch):
            place = epoch * self.steps_per_epoch + step
            if place // self._window % 2 == 0 or self._batch is None:
                self._batch = next(fresh)
            yield self._batch

    def close(self) -> None:
        """Do nothing: the loader belongs to the caller."""


class Idle(Recipe):
    """A recipe without a model, so that a run measures the loader and the loop alone."""

    name = "idle"
    backbone_name = "idle"

    def __init__(self) -> None:
        """Make the smallest layer, since an optimizer needs parameters."""
        super().__init__()
        self.backbone = nn.Linear(1, 1)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Return a loss that does not depend on the batch."""
        return StepOutput(self.backbone(torch.zeros(1, 1, device=next(self.parameters()).device)).sum())

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with learning rate 0."""
        return torch.optim.SGD(self.parameters(), lr=0.0)
