r"""Barlow Twins: self-supervised pre-training by redundancy reduction.

Example:
    python recipes/barlow.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 100 --batch-size 512 --out runs/barlow

Source: Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction" (arXiv 2103.03230), and the authors' published code for details that the paper leaves open.

The algorithm is in `BarlowTwins.training_step`, its loss in `engine.objectives.barlow`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from engine.train.run_config import StartConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(StartConfig):
    """Pre-train a backbone with Barlow Twins."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "resnet50"
    """Any timm name, or tiny_resnet for a CPU. Paper: resnet50."""
    resolution: Count = 224
    """Side length of the views in pixels. Paper: 224."""
    min_crop: float = 0.08
    """Smallest fraction of the image's area that a view shows. Authors' code: 0.08."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning. Paper: 0.5."""
    max_sigma: float = 2.0
    """Largest standard deviation of the blur in pixels; smaller views need less. Authors' code: 2 at 224."""
    epochs: Count = 1000
    """Passes over the split. Paper: 1000."""
    batch_size: Count = 2048
    """Images per step over all ranks. Paper: 2048."""
    projector: tuple[Count, ...] = (8192, 8192, 8192)
    """Output sizes of the projector's layers. Paper: 8192 8192 8192."""
    redundancy_weight: float = 0.0051
    """Lambda, the weight of the off-diagonal terms. Paper: 0.0051."""
    lr_weights: float | Literal["auto"] = "auto"
    """Peak learning rate of the weights for a batch of 256, scaled by batch size / 256. Paper: 0.2; auto:
    from the authors' table of batch sizes, which has 0.2 at 2048."""
    lr_vectors: float | Literal["auto"] = "auto"
    """Peak learning rate of biases and BatchNorm, scaled likewise. Authors' code: 0.0048; auto: 0.024 times
    that of the weights."""
    weight_decay: float = 1e-6
    """Weight decay of the weights; biases and BatchNorm have none. Authors' code: 1e-6 (paper: 1.5e-6)."""
    momentum: float = 0.9
    """Momentum of LARS. Authors' code: 0.9."""
    trust: float = 0.001
    """Trust coefficient (eta) of LARS. Authors' code: 0.001."""
    warmup_epochs: float = 10.0
    """Epochs of linear learning-rate warm-up. Paper: 10."""
    final_lr_factor: float = 0.001
    """Final learning rate, after a cosine decay, as a fraction of the peak. Paper: 1/1000."""
    batchnorm: Literal["per_view", "joint"] = "per_view"
    """BatchNorm's statistics in backbone and projector. per_view: of each view alone, as in the authors'
    code; joint: of both views."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.nets.backbones import Projector
from engine.objectives.barlow import barlow_twins_loss
from engine.objectives.precision import at_least_float32
from engine.train.batchnorm import forward_views
from engine.train.optim import LARS, lars_groups
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets

LR_BY_BATCH_SIZE = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
"""Best learning rate of the weights for each batch size, before scaling by batch size / 256.

Source: the authors, for ResNet-50 and 300 epochs, in the discussion of learning rates for small batches in
their code's repository.
"""
VECTOR_LR_SHARE = 0.024
"""Ratio of the learning rate of biases and BatchNorm to that of the weights, 0.0048 / 0.2 (authors' code)."""


def peak_learning_rates(config: Config) -> tuple[float, float]:
    """Return the peak learning rates (weights, vectors) for the batch size of the run.

    "auto" interpolates the authors' table linearly in log2 of the batch size; a batch size outside the table
    gets the value of the nearest end.

    In the authors' code the all-reduce of the correlation is invisible to autograd, so on R ranks every
    gradient is 1/R of the true gradient. For the weights, LARS hides this factor, because it rescales each
    update to the norm of the weight. Biases and BatchNorm are not rescaled: for them, the published 0.0048
    acts as 0.0048 / R. Here the gradient is the true one for any R, so 0.0048 always means what it means in
    the published code on one rank. To repeat a published run of R ranks, give --lr-vectors 0.0048 / R.
    """
    table = sorted(LR_BY_BATCH_SIZE.items())
    lr_weights = config.lr_weights
    if lr_weights == "auto":
        clamped = min(max(config.batch_size, table[0][0]), table[-1][0])
        (low, lr_low), (high, lr_high) = next((a, b) for a, b in pairwise(table) if clamped <= b[0])
        share = math.log2(clamped / low) / math.log2(high / low)
        lr_weights = lr_low + share * (lr_high - lr_low)
    lr_vectors = VECTOR_LR_SHARE * lr_weights if config.lr_vectors == "auto" else config.lr_vectors
    scale = config.batch_size / 256
    return lr_weights * scale, lr_vectors * scale


class BarlowTwins(Recipe):
    """Backbone, projector, and a BatchNorm that standardises the embeddings."""

    name = "barlow"
    parts = "embeddings"
    warms_up = True

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution, config.init)
        self.projector = Projector(num_features, config.projector)
        self.standardise = nn.BatchNorm1d(config.projector[-1], affine=False)

    def embed(self, batch: Batch) -> list[Tensor]:
        """Map each view of a batch, [B, 3, H, W], to embeddings [B, D] in float32 or wider."""
        views = batch.views
        if self.config.batchnorm == "joint":
            z_joint = self.projector(self.backbone(torch.cat(views)))
            return [at_least_float32(z) for z in z_joint.chunk(len(views))]
        representations = forward_views(self.backbone, views)
        return [at_least_float32(z) for z in forward_views(self.projector, representations)]

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Pull the cross-correlation of the two views' embeddings towards the identity (algorithm 1)."""
        return self.embedding_loss(self.embed(batch), step)

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Standardise the embeddings over the batch and correlate them (equations 1 and 2)."""
        with torch.autocast(embeddings[0].device.type, enabled=False):
            z_a, z_b = forward_views(self.standardise, embeddings)
        terms = barlow_twins_loss(z_a, z_b, self.config.redundancy_weight)
        return StepOutput(
            terms.loss,
            {"invariance": terms.invariance.detach(), "redundancy": terms.redundancy.detach()},
        )

    def make_optimizer(self) -> LARS:
        """Return LARS; biases and BatchNorm get neither weight decay nor rescaling (paper, section 2.2)."""
        config = self.config
        lr, lr_vectors = peak_learning_rates(config)
        groups = lars_groups(self, lr=lr_vectors)
        return LARS(groups, lr, config.momentum, config.weight_decay, config.trust)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the paper's schedule: a linear warm-up, then a cosine."""
        warmup_steps = round(self.config.warmup_epochs * steps_per_epoch)
        return warmup_cosine(total_steps, warmup_steps, self.config.final_lr_factor)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view_options = (config.resolution, config.min_crop, config.flip_p, config.max_sigma)
    views = (presets.barlow_a(*view_options), presets.barlow_b(*view_options))
    loaders = PretrainingLoaders(config, views)
    return run_recipe(config, lambda: BarlowTwins(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(BarlowTwins.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
