"""The two halves of a training run: the model without its loader, and the loader without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from engine.recipe import Recipe, StepOutput
from engine.schedule import Schedule, constant
from loaders.batch import Batch, Loader

Measure = Literal["training", "model", "loader"]


class RepeatedBatch:
    """A loader that fetches its first batch once and gives it again in every step."""

    def __init__(self, loader: Loader[Any]) -> None:
        """Fetch the batch.

        Args:
            loader: closed by the caller.
        """
        self._loader = loader
        self._batch = next(iter(loader.epoch(0)))
        self.steps_per_epoch, self.batch_size = loader.steps_per_epoch, loader.batch_size
        self.fingerprint = loader.fingerprint

    @property
    def bad_rows(self) -> Mapping[int, str]:
        """Those of the loader's first batch."""
        return self._loader.bad_rows

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yield the batch once per step."""
        for _ in range(start_step, self.steps_per_epoch):
            yield self._batch

    def close(self) -> None:
        """Do nothing: the loader belongs to the caller."""


class Idle(Recipe):
    """A recipe that looks at nothing: what remains of a step is the loader and the loop."""

    name = "idle"
    backbone_name = "idle"

    def __init__(self) -> None:
        """Hold the one weight that an optimizer needs."""
        super().__init__()
        self.backbone = nn.Linear(1, 1)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Return a loss that does not depend on the batch."""
        return StepOutput(self.backbone(torch.zeros(1, 1, device=next(self.parameters()).device)).sum())

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD that moves nothing."""
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Keep the learning rate."""
        return constant()
