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
from engine.train.schedule import Schedule, constant
from loaders.batch import Batch, Loader


@dataclass(frozen=True)
class StepOutput:
    """The result of one training step.

    Attributes:
        loss: scalar with a graph; either a mean over the rank's rows or a value that every rank computes in
            full, see `engine.train.distributed`.
        metrics: further scalars to log, detached, on the device; the loop averages them over steps and ranks.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Recipe(nn.Module, ABC):
    """The algorithm of a paper: its networks, one step, its parameter groups and its schedule.

    Of a recipe, a checkpoint keeps only the parameters, the buffers and the state of the optimizer. A
    subclass sets `backbone`, the part that is used for transfer, and `backbone_name`.
    """

    name: ClassVar[str]
    parts: ClassVar[Literal["none", "rows", "embeddings"]] = "none"
    """How a batch can be cut (see `engine.train.accumulation`): not at all; by rows, if the loss is a mean
    over rows; or by embeddings, if `embed` and `embedding_loss` make up the training step."""
    own_optimizer: ClassVar[bool] = False
    """Whether the recipe works only with its paper's optimizer."""
    warms_up: ClassVar[bool] = False
    """Whether `make_schedule` includes the configured warm-up; if not, the loop adds it."""
    backbone: nn.Module
    backbone_name: str

    def make_backbone(self, name: str, resolution: int, init: Path | None = None) -> int:
        """Set the backbone to the result of `build_start`, and return the size of its representation."""
        self.backbone, self.backbone_name = build_start(init, name, resolution), name
        return int(self.backbone.num_features)  # type: ignore[arg-type]

    @property
    def network(self) -> nn.Module:
        """The network to validate and use, from views to logits (recipes with labels): the average if any."""
        return self

    @property
    def measured_beside(self) -> Mapping[str, nn.Module]:
        """Further networks to validate, by name: the trained network if `network` is its average."""
        return {}

    @property
    def measured_backbone(self) -> nn.Module:
        """The network for the online probe, from whole images to representations."""
        return self.backbone

    @property
    def rules(self) -> Mapping[str, str]:
        """Rules of training that no option names, as texts by name; a resume under other rules is refused.

        A change of the code that makes the same options train differently must change one of these texts.
        """
        return {}

    @abstractmethod
    def training_step(self, batch: Any, step: int) -> StepOutput:
        """Compute the loss of one batch of this rank; the loop runs it under autocast.

        Args:
            batch: `Batch` or `PairedBatch` of the run's loader, or a part of it (see `parts`), on the device.
            step: optimizer steps done before this one, over all epochs.
        """

    def embed(self, batch: Any) -> Sequence[Tensor]:
        """Map a batch or a part of it to embeddings, float32 [B, D] each; only if `parts` = "embeddings"."""
        raise NotImplementedError

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Compute the loss from the embeddings of all rows of this rank; only if `parts` = "embeddings"."""
        raise NotImplementedError

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """Make the optimizer; each group's `lr` is its peak, which the loop scales by the schedule."""

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the learning-rate factor as a pure function of the step; by default the rate is constant."""
        return constant()

    def weigh_classes(self, counts: Tensor) -> None:
        """Receive the label counts of the classes, int64 [C], before training; for recipes with labels."""
        return

    def begin_training(self, out: Path, device: torch.device) -> None:
        """Prepare the initial weights of a run.

        The loop calls this on every rank, without gradients, before the first step but not on a resume.
        """
        return

    def begin_epoch(self, epoch: int) -> None:
        """Prepare an epoch, for example by new targets.

        The loop calls this on every rank, without gradients, before the first batch of an epoch but not when
        a run resumes inside an epoch. So its results belong in buffers, which checkpoints keep. Its random
        numbers must come from a separate generator seeded by the epoch, so that a resume changes nothing.

        Args:
            epoch: counted from 0.
        """
        return

    def after_step(self, step: int) -> None:
        """Update what depends on the weights, such as a moving average; called without gradients.

        Args:
            step: index of the step just taken.
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
        """Write the last weights before the run restores its best ones; called on rank 0 only.

        Args:
            out: folder to write to; it may not exist yet.
        """
        return

    def finish(self, out: Path, test_loader: Loader[Batch] | None, device: torch.device) -> Accuracy | None:
        """Write and measure the results of a run besides its backbone; called on every rank at the end.

        Args:
            out: run folder.
            test_loader: loader of this rank's part of the test images; None if there are none.
            device: device of the run.

        Returns:
            The accuracy on the test images of the weights to use; None if it was not measured.
        """
        return None
