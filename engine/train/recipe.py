"""What the loop asks of a recipe: a module with a training step, an optimizer and a schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.evaluate.predict import Accuracy
from engine.train.schedule import Schedule
from loaders.batch import Batch, Loader


@dataclass(frozen=True)
class StepOutput:
    """What one training step gives back.

    Attributes:
        loss: scalar with a graph. Following `engine.train.distributed`, either a mean over the rank's rows or
            a value that every rank computes in full.
        metrics: further scalars to log, detached, on the device; averaged over steps and ranks.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Recipe(nn.Module, ABC):
    """The algorithm of a paper: its networks, one step, its parameter groups and its schedule.

    The parameters and buffers of the module are the whole state that a checkpoint keeps, besides that of
    the optimizer. A subclass sets `backbone`, the part that transfers, and its name.
    """

    name: ClassVar[str]
    parts: ClassVar[Literal["none", "rows", "embeddings"]] = "none"
    """How a batch can be cut, see `engine.train.accumulation`: not at all; the loss is a mean over rows; or
    it is one of embeddings, and `embed` and `embedding_loss` make up the training step."""
    own_optimizer: ClassVar[bool] = False
    """Whether the recipe learns with its paper's optimizer alone."""
    warms_up: ClassVar[bool] = False
    """Whether `make_schedule` has the warm-up of the configuration in it; else the loop adds it."""
    fixed_views: ClassVar[bool] = False
    """Whether views must have the size that the run gives: something is compared with their pixels."""
    backbone: nn.Module
    backbone_name: str

    @property
    def network(self) -> nn.Module:
        """What maps views to logits and will be used: an average where there is one. It is validated."""
        return self

    @property
    def rules(self) -> Mapping[str, str]:
        """Rules of learning that no option names, in words; a resume under other rules is refused.

        A change that makes the same options train differently changes one of them.
        """
        return {}

    @abstractmethod
    def training_step(self, batch: Any, step: int) -> StepOutput:
        """Compute the loss of one batch of this rank; the loop runs it under autocast.

        Args:
            batch: what the run's loader yields, `Batch` or `PairedBatch`, on the device.
            step: optimizer steps done before this one, over all epochs.
        """

    def embed(self, batch: Any) -> Sequence[Tensor]:
        """Map a batch, or a part of one, to embeddings, float32 [B, D] each; for `parts` "embeddings"."""
        raise NotImplementedError

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Compute the loss of what `embed` gave for all rows of this rank."""
        raise NotImplementedError

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """Make the optimizer; each group's `lr` is its peak, which the loop scales by the schedule."""

    @abstractmethod
    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the learning-rate factor as a pure function of the step."""

    def weigh_classes(self, counts: Tensor) -> None:
        """Take note, before training, of the labels of each class, int64 [C]; for recipes with labels."""
        return

    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch, such as by new targets; called on every rank, without gradients.

        The loop calls it before the first batch of an epoch and not when a run resumes inside one: what it
        decides belongs into buffers, which checkpoints keep. Random numbers of a generator of its own,
        seeded by the epoch, make a resumed run equal to a whole one.

        Args:
            epoch: counted from 0.
        """
        return

    def after_step(self, step: int) -> None:
        """Update what follows the weights, such as a moving average; called without gradients.

        Args:
            step: the index of the step that was just taken.
        """
        return

    def write_results(self, out: Path) -> None:
        """Leave pictures or tables of the trained networks in the run folder.

        Called once, on rank 0 alone, without gradients, when training is over: no collectives in here.

        Args:
            out: run folder; it holds the first views of the run, see `engine.train.samples`.
        """
        return

    def leave_last(self, out: Path) -> None:
        """Leave the last weights, where the run will use others; called like `write_results`.

        Args:
            out: folder for them, which does not exist yet or is of an earlier process.
        """
        return

    def finish(self, out: Path, test_loader: Loader[Batch] | None, device: torch.device) -> Accuracy | None:
        """Leave, and measure, what a run is for besides its backbone; called on every rank at the end.

        Args:
            out: run folder.
            test_loader: of this rank's part of the test images; None where there are none.
            device: of the run.

        Returns:
            The accuracy of the weights to use; None where nothing is classified.
        """
        return None
