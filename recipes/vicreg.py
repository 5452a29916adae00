r"""VICReg: self-supervised pre-training by variance, invariance and covariance.

Example:
    python recipes/vicreg.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 100 --batch-size 512 --out runs/vicreg

Source: Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning" (arXiv 2105.04906), and the authors' published code for details that the paper leaves open.

The algorithm is in `VicReg.training_step`, its loss in `engine.objectives.vicreg`.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.run_config import StartConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(StartConfig):
    """Pre-train a backbone with VICReg."""

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
    """Output sizes of the expander's layers. Paper: 8192 8192 8192."""
    invariance_weight: float = 25.0
    """Lambda, weight of the distance between the embeddings of two views. Paper: 25."""
    variance_weight: float = 25.0
    """Mu, weight of the term that keeps the variance of each feature up. Paper: 25."""
    covariance_weight: float = 1.0
    """Nu, weight of the term that decorrelates the features. Paper: 1."""
    lr: float = 0.2
    """Peak learning rate for a batch of 256, scaled by batch size / 256. Paper: 0.2."""
    weight_decay: float = 1e-6
    """Weight decay of the weights; biases and BatchNorm have none. Paper: 1e-6."""
    momentum: float = 0.9
    """Momentum of LARS. Authors' code: 0.9."""
    trust: float = 0.001
    """Trust coefficient (eta) of LARS. Authors' code: 0.001."""
    warmup_epochs: float = 10.0
    """Epochs of linear learning-rate warm-up. Paper: 10."""
    final_lr_factor: float = 0.001
    """Final learning rate, after a cosine decay, as a fraction of the peak. Authors' code: 0.001."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from collections.abc import Sequence

from torch import Tensor

from engine.nets.backbones import Projector
from engine.objectives.precision import at_least_float32
from engine.objectives.vicreg import vicreg_loss
from engine.train.batchnorm import forward_views
from engine.train.optim import LARS, lars_groups
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class VicReg(Recipe):
    """Backbone and projector."""

    name = "vicreg"
    parts = "embeddings"
    warms_up = True

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution, config.init)
        self.projector = Projector(num_features, config.projector)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Pull the embeddings of two views together; keep features varied and uncorrelated (algorithm 1)."""
        return self.embedding_loss(self.embed(batch), step)

    def embed(self, batch: Batch) -> list[Tensor]:
        """Map each view of a batch, [B, 3, H, W], to embeddings [B, D] in float32 or wider."""
        representations = forward_views(self.backbone, batch.views)
        return [at_least_float32(z) for z in forward_views(self.projector, representations)]

    def embedding_loss(self, embeddings: Sequence[Tensor], step: int) -> StepOutput:
        """Return the weighted sum of invariance, variance and covariance terms (equation 6)."""
        config = self.config
        z_a, z_b = embeddings
        terms = vicreg_loss(
            z_a, z_b, config.invariance_weight, config.variance_weight, config.covariance_weight
        )
        return StepOutput(
            terms.loss,
            {
                "invariance": terms.invariance.detach(),
                "variance": terms.variance.detach(),
                "covariance": terms.covariance.detach(),
            },
        )

    def make_optimizer(self) -> LARS:
        """Return LARS; biases and BatchNorm get neither weight decay nor LARS's rescaling (authors' code)."""
        config = self.config
        lr = config.lr * config.batch_size / 256
        return LARS(lars_groups(self), lr, config.momentum, config.weight_decay, config.trust)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the paper's schedule: a linear warm-up, then a cosine."""
        warmup_steps = round(self.config.warmup_epochs * steps_per_epoch)
        return warmup_cosine(total_steps, warmup_steps, self.config.final_lr_factor)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view_options = (config.resolution, config.min_crop, config.flip_p, config.max_sigma)
    views = (presets.barlow_a(*view_options), presets.barlow_b(*view_options))
    loaders = PretrainingLoaders(config, views)
    return run_recipe(config, lambda: VicReg(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(VicReg.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
