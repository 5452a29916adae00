r"""SimCLR: self-supervised pre-training by contrasting views of a batch.

Example:
    python recipes/simclr.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 100 --batch-size 512 --out runs/simclr

Source: Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual
Representations" (arXiv 2002.05709), and the authors' published code for details that the paper leaves open.

The algorithm is in `SimClr.training_step`, its loss in `engine.objectives.simclr`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.train.run_config import StartConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(StartConfig):
    """Pre-train a backbone with SimCLR."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "resnet50"
    """Any timm name, or tiny_resnet for a CPU. Paper: resnet50."""
    resolution: Count = 224
    """Side length of the views in pixels. Paper: 224."""
    min_crop: float = 0.08
    """Smallest fraction of the image's area that a view shows. Paper: 0.08."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning. Paper: 0.5."""
    color_strength: float = 1.0
    """Strength of the colour jitter. Paper: 1."""
    epochs: Count = 100
    """Passes over the split. Paper: 100 to 1000."""
    batch_size: Count = 4096
    """Images per step over all ranks; each image is a negative for all others. Paper: 4096."""
    projector: tuple[Count, ...] = (2048, 128)
    """Output sizes of the projector's layers. Paper: 2048 128."""
    temperature: float = 0.1
    """Temperature, by which the similarities are divided. Paper: 0.1."""
    lr: float = 0.3
    """Peak learning rate for a batch of 256, scaled by batch size / 256. Paper: 0.3."""
    weight_decay: float = 1e-6
    """Weight decay of the weights; biases and BatchNorm have none. Paper: 1e-6."""
    momentum: float = 0.9
    """Momentum of LARS. Authors' code: 0.9."""
    trust: float = 0.001
    """Trust coefficient (eta) of LARS. Authors' code: 0.001."""
    warmup_epochs: float = 10.0
    """Epochs of linear learning-rate warm-up. Paper: 10."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from collections.abc import Sequence

import torch
from torch import Tensor

from engine.nets.backbones import Projector
from engine.objectives.precision import at_least_float32
from engine.objectives.simclr import simclr_loss
from engine.train.optim import LARS, lars_groups
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets
from loaders.views.geometry import RandomResizedCrop
from loaders.views.policy import HorizontalFlip


class SimClr(Recipe):
    """Backbone and projector."""

    name = "simclr"
    parts = "embeddings"
    warms_up = True

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution, config.init)
        self.projector = Projector(num_features, config.projector)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Find each view's partner among all views of the batch (algorithm 1).

        Both views go through the networks as one batch and share BatchNorm's statistics (authors' code).
        """
        return self.embedding_loss(self.embed(batch), step)

    def embed(self, batch: Batch) -> list[Tensor]:
        """Map each view of a batch, [B, 3, H, W], to embeddings [B, D] in float32 or wider."""
        return list(at_least_float32(self.projector(self.backbone(torch.cat(batch.views)))).chunk(2))

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Return the contrastive loss of the embeddings of two views (equation 1)."""
        z_a, z_b = embeddings
        terms = simclr_loss(z_a, z_b, self.config.temperature)
        return StepOutput(terms.loss, {"contrast_top1": terms.top1})

    def make_optimizer(self) -> LARS:
        """Return LARS; biases and BatchNorm get neither weight decay nor LARS's rescaling (authors' code)."""
        config = self.config
        lr = config.lr * config.batch_size / 256
        return LARS(lars_groups(self), lr, config.momentum, config.weight_decay, config.trust)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the paper's schedule: a linear warm-up, then a cosine."""
        return warmup_cosine(total_steps, round(self.config.warmup_epochs * steps_per_epoch))


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    paper = presets.simclr(config.resolution, config.color_strength)
    view = replace(
        paper,
        geometry=RandomResizedCrop(scale=(config.min_crop, 1.0)),
        operations=(HorizontalFlip(config.flip_p), *paper.operations[1:]),
    )
    loaders = PretrainingLoaders(config, (view, view))
    return run_recipe(config, lambda: SimClr(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(SimClr.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
