r"""Temporal ensembling: predictions learn to agree with the average of the image's earlier predictions.

Example, from scratch as in the paper:
    python recipes/temporal_ensembling.py --pack packs/mine --labels-per-class 25 --out runs/ensembling

Example, as the last stage of the 2021 report, from the best classifier so far:
    python recipes/temporal_ensembling.py --pack packs/mine --init runs/fixmatch --keep-head \
        --backbone resnet50 --resolution 96 --epochs 40 --ramp-epochs 2 --ramp-down-epochs 10 --lr 0.0003 \
        --out runs/smoothed

Source: Laine and Aila 2017, "Temporal Ensembling for Semi-Supervised Learning" (arXiv 1610.02242); the report
is Zhou, Wan, Li 2021, section 2.2, which names the method for its last stage without its constants.

One table holds the average prediction of each unlabelled image: 4 bytes per image and class, on the device
and in every checkpoint. Each image is predicted once per epoch, so its new average serves in the next epoch.

The algorithm is in `TemporalEnsembling.training_step`, its loss in `engine.objectives.temporal_ensembling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.train.classifier_config import SemiConfig
from loaders.common.checks import Count, Share
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(SemiConfig):
    """Train a classifier with temporal ensembling."""

    backbone: str = "wrn_28_2"
    """wrn_28_2, tiny_resnet for a CPU, or any timm name. Paper: a network of 13 layers; report: resnet50."""
    resolution: int = 32
    """Side length of the views in pixels. Paper: 32; report: 96."""
    epochs: int = 300
    """Passes over the unlabelled images. Paper: 300."""
    batch_size: int = 25
    """Labelled images per step over all ranks. Paper: a random number of the 100 images of a batch."""
    mu: Count = 4
    """Unlabelled images per labelled one. Paper: see --batch-size."""
    momentum: float = 0.6
    """Decay, per epoch, of the average of an image's predictions. Paper: 0.6."""
    consistency_weight: float = 30.0
    """Weight of the consistency loss after its ramp; the cross-entropy is a mean over the labelled images.
    Paper: 30 times the share of labelled images, with a cross-entropy divided by the number of all images;
    this is equivalent."""
    ramp_epochs: float = 80.0
    """Epochs over which --consistency-weight and --lr both ramp up as exp(-5 (1 - t)^2). Paper: 80."""
    ramp_down_epochs: float = 50.0
    """Epochs at the end over which the learning rate falls as exp(-12.5 t^2). Paper: 50."""
    lr: float = 0.003
    """Peak learning rate of Adam. Paper: 0.003."""
    beta1: float = 0.9
    """First beta of Adam, its momentum, which stays. Paper: 0.9, falling to 0.5 in the last 50 epochs."""
    shift: Share = 0.0625
    """Largest shift of a view, as a fraction of its side. Paper: 2 of 32 pixels."""

    def __post_init__(self) -> None:
        """Refuse a --momentum or --beta1 outside [0, 1)."""
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0 or not 0.0 <= self.beta1 < 1.0:
            raise UserError(
                f"expected momentum and beta1 in [0, 1), found {self.momentum} and {self.beta1}; change them"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.objectives.cross_entropy import label_loss
from engine.objectives.mean_teacher import ramp_up
from engine.objectives.temporal_ensembling import accumulate, ensemble_consistency, targets
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.distributed import all_gather
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, ramp_up_and_down
from loaders import open_pack
from loaders.batch import PairedBatch
from loaders.classification import SemiLoaders
from loaders.views import presets


class TemporalEnsembling(ClassifierRecipe):
    """A classifier and a table with the average prediction of each unlabelled image."""

    name = "temporal_ensembling"
    parts = "rows"
    rows: Tensor
    ensemble: Tensor
    visits: Tensor

    def __init__(self, config: Config, classes: Sequence[str], rows: NDArray[np.int64]) -> None:
        """Build the network and an empty table; call `seed_everything` first.

        Args:
            rows: int64 [N], rows of the pack with the unlabelled images.
        """
        super().__init__(config, classes)
        self.config = config
        self.ramp_steps = 0
        self.register_buffer("rows", torch.from_numpy(np.sort(rows)), persistent=False)
        # Buffers, since checkpoints hold them: a resumed run continues with its averages.
        self.register_buffer("ensemble", torch.zeros(len(rows), len(classes)))
        self.register_buffer("visits", torch.zeros(len(rows), dtype=torch.int64))
        self._predicted: tuple[int, list[tuple[Tensor, Tensor]]] = (-1, [])

    @property
    def rules(self) -> Mapping[str, str]:
        """Rules of training that no option sets; a checkpoint made under other rules is refused."""
        return {**super().rules, "averages of predictions": "one visit per image and epoch"}

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Classify labelled images; pull predictions of unlabelled ones to their averages (algorithm 2)."""
        config = self.config
        (x,), labels = self.mixed(batch.labeled, step)
        logits, unlabeled = self.classify(x, batch.unlabeled.views[0])
        places = torch.searchsorted(self.rows, batch.unlabeled.index)
        visits = self.visits[places]
        target = targets(self.ensemble[places], visits, config.momentum)
        supervised = label_loss(logits, labels, self.class_weights)
        consistency = ensemble_consistency(unlabeled, target, visits > 0)
        self._note(step, places, unlabeled.detach().softmax(1))
        metrics = {"top1": top1_of(logits, labels)}
        metrics |= {"supervised": supervised.detach(), "consistency": consistency.detach()}
        weight = config.consistency_weight * ramp_up(step, self.ramp_steps)
        return StepOutput(supervised + weight * consistency, metrics)

    def _note(self, step: int, places: Tensor, predictions: Tensor) -> None:
        """Keep the predictions of a step, or of one of its micro-batches, for `after_step`."""
        if self._predicted[0] != step:
            self._predicted = (step, [])
        self._predicted[1].append((places, predictions))

    def after_step(self, step: int) -> None:
        """Add the predictions of all ranks to the table, which is the same on every rank."""
        places, predictions = (
            all_gather(torch.cat(column)) for column in zip(*self._predicted[1], strict=True)
        )
        self.ensemble[places] = accumulate(self.ensemble[places], predictions, self.config.momentum)
        self.visits[places] += 1
        self._predicted = (-1, [])

    def make_optimizer(self) -> torch.optim.Adam:
        """Return Adam."""
        return torch.optim.Adam(self.parameter_groups(), self.config.lr, betas=(self.config.beta1, 0.999))

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the paper's ramps, and store the length of the first one in steps."""
        self.ramp_steps = round(self.config.ramp_epochs * steps_per_epoch)
        down = round(self.config.ramp_down_epochs * steps_per_epoch)
        return ramp_up_and_down(total_steps, self.ramp_steps, down)


def run(config: Config) -> RunSummary:
    """Train on a pack and write a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    config = config.on_pack(pack)
    view = (presets.weak(config.resolution, config.flip_p, padding=config.shift),)
    loaders = SemiLoaders(pack, config, view, view)
    rows = loaders.unlabeled.rows(np.arange(len(loaders.unlabeled)))
    return run_recipe(config, lambda: TemporalEnsembling(config, pack.classes, rows), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(TemporalEnsembling.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
