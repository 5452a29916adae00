"""The interface between loop and recipe: a module with a training step, an optimizer and a schedule."""

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
from engine.nets.starts import build_start
from engine.train.schedule import Schedule
from loaders.batch import Batch, Loader


@dataclass(frozen=True)
class StepOutput:
    """The result of one training step.

    Attributes:
        loss: scalar with a graph. Following `engine.train.distributed`, either a mean over the rank's rows or
            a value that every rank computes in full.
        metrics: further scalars to log, detached, on the device; averaged over steps and ranks.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Recipe(nn.Module, ABC):
    """The algorithm of a paper: its networks, one step, its parameter groups and its schedule.

    The parameters and buffers of the module, and the state of the optimizer, are all that a checkpoint keeps.
    A subclass sets `backbone`, the part that transfers, and the name of the backbone.
    """

    name: ClassVar[str]
    parts: ClassVar[Literal["none", "rows", "embeddings"]] = "none"
    """How a batch can be cut, see `engine.train.accumulation`: not at all; by rows, if the loss is a mean
    over them; or by embeddings, if `embed` and `embedding_loss` make up the training step."""
    own_optimizer: ClassVar[bool] = False
    """Whether the recipe learns only with its paper's optimizer."""
    warms_up: ClassVar[bool] = False
    """Whether `make_schedule` includes the warm-up of the configuration; else the loop adds it."""
    backbone: nn.Module
    backbone_name: str

    def make_backbone(self, name: str, resolution: int, init: Path | None = None) -> int:
        """Build the backbone, see `build_start`; return the size of its representation."""
        self.backbone, self.backbone_name = build_start(init, name, resolution), name
        return int(self.backbone.num_features)  # type: ignore[arg-type]

    @property
    def network(self) -> nn.Module:
        """The network from views to logits that will be used and validated: the average if there is one."""
        return self

    @property
    def measured_beside(self) -> Mapping[str, nn.Module]:
        """Other networks to validate, by name: the weights themselves where their average will be used."""
        return {}

    @property
    def measured_backbone(self) -> nn.Module:
        """The network from whole images to representations that the online probe measures."""
        return self.backbone

    @property
    def rules(self) -> Mapping[str, str]:
        """Rules of learning that no option names, as texts; a resume under other rules is refused.

        If a change of code makes the same options train differently, it must change one of these texts.
        """
        return {}

    @abstractmethod
    def training_step(self, batch: Any, step: int) -> StepOutput:
        """Compute the loss of one batch of this rank; the loop runs it under autocast.

        Args:
            batch: batch of the run's loader, `Batch` or `PairedBatch`, on the device.
            step: optimizer steps done before this one, over all epochs.
        """

    def embed(self, batch: Any) -> Sequence[Tensor]:
        """Map a batch, or a part of one, to embeddings, float32 [B, D] each; for `parts` "embeddings"."""
        raise NotImplementedError

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Compute the loss from the embeddings of all rows of this rank."""
        raise NotImplementedError

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """Make the optimizer; each group's `lr` is its peak, which the loop scales by the schedule."""

    @abstractmethod
    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the learning-rate factor as a pure function of the step."""

    def weigh_classes(self, counts: Tensor) -> None:
        """Take the number of labels of each class, int64 [C], before training; for recipes with labels."""
        return

    def begin_training(self, out: Path, device: torch.device) -> None:
        """Prepare the weights that a run begins with; called on every rank, without gradients.

        The loop calls it before the first step, and not when a run resumes.

        Args:
            out: run folder.
            device: device that the run computes on.
        """
        return

    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch, such as by new targets; the loop calls this on every rank, without gradients.

        The loop calls it before the first batch of an epoch, and not when a run resumes inside one. So its
        results belong into buffers, which checkpoints keep. Draw its random numbers from a separate generator
        seeded by the epoch; then a resumed run equals a whole one.

        Args:
            epoch: counted from 0.
        """
        return

    def after_step(self, step: int) -> None:
        """Update what follows the weights, such as a moving average; the loop calls this without gradients.

        Args:
            step: the index of the step that was just taken.
        """
        return

    def write_results(self, out: Path) -> None:
        """Write pictures or tables of the trained networks into the run folder.

        The loop calls this once after training, on rank 0 only and without gradients: use no collectives.

        Args:
            out: run folder; it holds the first views of the run, see `engine.train.samples`.
        """
        return

    def leave_last(self, out: Path) -> None:
        """Write the last weights, if the run will use others; called like `write_results`.

        Args:
            out: folder for them; it does not exist yet, or an earlier process made it.
        """
        return

    def finish(self, out: Path, test_loader: Loader[Batch] | None, device: torch.device) -> Accuracy | None:
        """Write and measure the results of a run besides its backbone; called on every rank at the end.

        Args:
            out: run folder.
            test_loader: loader of this rank's part of the test images; None if there are none.
            device: device that the run computes on.

        Returns:
            The accuracy of the weights to use; None if the recipe has no labels.
        """
        return None
