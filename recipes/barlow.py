r"""Barlow Twins: self-supervised pre-training by redundancy reduction.

Example:
    python recipes/barlow.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 100 --batch-size 512 --out runs/barlow

Source: Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction" (arXiv 2103.03230), and the authors' published code for what the text leaves open.

The algorithm box is `BarlowTwins.training_step`; its loss is `engine.objectives.barlow`.
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
    """Side of the views in pixels. Paper: 224."""
    min_crop: float = 0.08
    """Smallest share of the image that a view shows. Authors' code: 0.08."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; 0 where left and right carry meaning. Paper: 0.5."""
    max_sigma: float = 2.0
    """Largest standard deviation of the blur in pixels; smaller views want less. Authors' code: 2 at 224."""
    epochs: Count = 1000
    """Passes over the split. Paper: 1000."""
    batch_size: Count = 2048
    """Images per step over all ranks. Paper: 2048."""
    projector: tuple[Count, ...] = (8192, 8192, 8192)
    """Output sizes of the projector's layers. Paper: 8192 8192 8192."""
    redundancy_weight: float = 0.0051
    """Lambda, the weight of the off-diagonal terms. Paper: 0.0051."""
    lr_weights: float | Literal["auto"] = "auto"
    """Peak learning rate of weights for 256 images, scaled by batch / 256. Paper: 0.2; auto: by the
    authors' table of batch sizes, which has 0.2 at 2048."""
    lr_vectors: float | Literal["auto"] = "auto"
    """The same for biases and BatchNorm. Authors' code: 0.0048; auto: 0.024 times that of weights."""
    weight_decay: float = 1e-6
    """Weight decay, for weights only. Authors' code: 1e-6 (the paper's text says 1.5e-6)."""
    momentum: float = 0.9
    """Momentum of LARS. Authors' code: 0.9."""
    trust: float = 0.001
    """LARS's eta. Authors' code: 0.001."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate rises linearly. Paper: 10."""
    final_lr_factor: float = 0.001
    """Learning rate at the end over its peak, by a cosine. Paper: 1/1000."""
    batchnorm: Literal["per_view", "joint"] = "per_view"
    """BatchNorm's statistics: of each view apart, as in the authors' code, or of both views joined."""


if __name__ == "__main__":  # before the imports that take seconds
    check_command_line(Config, __doc__)


from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.nets.backbones import Projector
from engine.objectives.barlow import barlow_twins_loss
from engine.objectives.precision import at_least_float32
from engine.train.batchnorm import forward_views
from engine.train.optim import LARS, split_by_dimension
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets

LR_BY_BATCH_SIZE = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
"""Best weight learning rate found for each batch size, before the factor batch / 256 (ResNet-50, 300 epochs).

Source: the authors, in the discussion of learning rates for small batches in their code's repository.
"""
VECTOR_LR_SHARE = 0.024
"""Learning rate of biases and BatchNorm as a share of the weights': 0.0048 / 0.2 in the authors' code."""


def peak_learning_rates(config: Config) -> tuple[float, float]:
    """Return the peak learning rates (weights, vectors) for the batch size of the run.

    "auto" interpolates the authors' table linearly in log2 of the batch size; beyond the table, its nearest
    end counts.

    In the authors' code the all-reduce of the correlation is invisible to autograd, so on R ranks every
    gradient is 1/R of the loss's. LARS undoes that for weights, since it rescales their update to the
    weight's norm. Vectors are left out of LARS: for them, the published 0.0048 acted as 0.0048 / R. Here
    the gradients are those of the loss for any R. So 0.0048 means the same on any number of ranks, as in the
    published code on one rank. To repeat a published run of R ranks, give --lr-vectors 0.0048 / R.
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
    """Backbone, projector and the standardisation of the embedding."""

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
        """Map the views [B, 3, H, W] of a batch to embeddings, at least float32 [B, D] each."""
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
        """Return LARS; vectors get neither weight decay nor LARS's rescaling (paper, section 2.2)."""
        lr_weights, lr_vectors = peak_learning_rates(self.config)
        weights, vectors = split_by_dimension(self)
        return LARS(
            [
                {"params": weights, "lr": lr_weights, "weight_decay": self.config.weight_decay},
                {"params": vectors, "lr": lr_vectors, "weight_decay": 0.0, "adapt": False},
            ],
            lr=lr_weights,
            momentum=self.config.momentum,
            trust=self.config.trust,
        )

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the warm-up and cosine of the paper."""
        warmup_steps = round(self.config.warmup_epochs * steps_per_epoch)
        return warmup_cosine(total_steps, warmup_steps, self.config.final_lr_factor)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and leave a run folder."""
    view_options = (config.resolution, config.min_crop, config.flip_p, config.max_sigma)
    views = (presets.barlow_a(*view_options), presets.barlow_b(*view_options))
    loaders = PretrainingLoaders(config, views)
    return run_recipe(config, lambda: BarlowTwins(config), loaders)


def main() -> None:
    """Run the command line."""
    print_summary(BarlowTwins.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
