r"""DCGAN: pre-training a backbone as the discriminator between real and generated images.

Example:
    python recipes/dcgan.py --pack packs/mine --split unlabeled --resolution 96 --out runs/dcgan
    python recipes/transfer.py --pack packs/mine --init runs/dcgan --labels-per-class 1 10 --out runs/few

Source: Radford et al. 2015, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (arXiv 1511.06434), section 5.1 for the features, and the authors' published code for
the number of epochs. The report, Zhu, Mananghaya, Rivera Ruiz 2019, adds labels to the method: see
recipes/ssl_gan.py, which accepts a run of this recipe as --init.

The networks are those of recipes/ssl_gan.py; one backward pass gives the gradients of discriminator and
generator, which take their steps together. Each epoch writes a sheet of generated images to samples/, and the
end of the run writes last.png. The run warns when the generator has collapsed, so that its images are nearly
all alike.

The algorithm is in `Dcgan.training_step`, its losses in `engine.objectives.dcgan`.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.gan_config import GanConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(GanConfig):
    """Pre-train a backbone as the discriminator of a GAN."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "gan_discriminator_96"
    """Discriminator, as in recipes/ssl_gan.py; its name ends with its width in channels."""
    resolution: Count = 64
    """Side length of the images: 4, 5, 6 or 7 pixels, times 4, 8, 16 or 32, such as 32, 64 or 96. Paper: 64
    and 32; report: 96."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning."""
    epochs: Count = 25
    """Passes over the split. Authors' code: 25."""
    batch_size: Count = 128
    """Real images per step over all ranks, and as many generated ones. Paper: 128."""
    dropout: float = 0.0
    """Dropout rate in the discriminator, and 0.4 times this rate on its input. Paper: none."""
    lr: float = 2e-4
    """Learning rate of Adam, for the discriminator. Paper: 0.0002."""
    lr_generator: float = 2e-4
    """Learning rate of Adam, for the generator. Paper: 0.0002."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import nn

from engine.objectives.dcgan import dcgan_loss
from engine.objectives.ssl_gan import diversity
from engine.train.draws import StepDraws
from engine.train.gan_recipe import GanRecipe, fixed
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class Dcgan(GanRecipe):
    """A discriminator, whose backbone is the result of the pre-training, and a generator."""

    name = "dcgan"

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution)
        self.head = nn.Linear(num_features, 1)
        self.add_generator(config, self.backbone)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Add the discriminator's loss and the generator's non-saturating loss (Goodfellow et al. 2014)."""
        x = batch.views[0]
        noise = StepDraws(self.config.seed, step, x.device).uniform(len(x), self.config.noise_size)
        generated = self.generate(noise)
        told = self.head(self.backbone(torch.cat([x, generated.detach()])))[:, 0]
        for_generator = fixed(self.head, fixed(self.backbone, generated))[:, 0]
        terms = dcgan_loss(told[: len(x)], told[len(x) :], for_generator)
        spread = diversity(generated.detach())
        with torch.no_grad():
            self.real_spread.copy_(diversity(x))
        metrics = {
            "discriminator": terms.discriminator.detach(),
            "generator": terms.generator.detach(),
            "p_real": terms.real,
            "p_generated": terms.generated,
            "diversity": spread / self.real_spread,
        }
        return StepOutput(terms.loss, metrics)

    def make_optimizer(self) -> torch.optim.Adam:
        """Return Adam with separate learning rates for discriminator and generator."""
        return self.rivals(self.config.lr, self.backbone, self.head)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view = presets.weak(config.resolution, config.flip_p, padding=0.0)
    return run_recipe(config, lambda: Dcgan(config), PretrainingLoaders(config, (view,)))


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Dcgan.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
