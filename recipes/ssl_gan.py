r"""Semi-supervised DCGAN: a classifier that also learns to tell generated images from real ones.

Example:
    python recipes/ssl_gan.py --pack packs/mine --labels-per-class 25 --out runs/ssl-gan

Source: Salimans et al. 2016, "Improved Techniques for Training GANs" (arXiv 1606.03498), section 5, with the
constants of its published code; the report is Zhu, Mananghaya, Rivera Ruiz 2019, where the method reached
10.1 % and plain supervised training 30.5 %.

One backward pass gives the gradients of discriminator and generator, which take their steps together: the
generator's loss treats the discriminator's weights as constants, and the discriminator's loss the generated
images. Each epoch writes a sheet of generated images to samples/, and the end of the run writes last.png. The
run warns when the generator has collapsed, so that its images are nearly all alike.

The algorithm is in `SslGan.training_step`, its losses in `engine.objectives.ssl_gan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.train.classifier_config import SemiConfig
from engine.train.gan_config import GanConfig
from engine.train.run_config import is_usual
from loaders.common.checks import Count, Share
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(GanConfig, SemiConfig):
    """Train a classifier as the discriminator of a GAN."""

    backbone: str = "gan_discriminator_96"
    """Discriminator; its name ends with its width in channels. Paper: 96 and 192 channels."""
    resolution: int = 32
    """Side length of the images: 4, 5, 6 or 7 pixels, times 4, 8, 16 or 32, such as 32, 64 or 96. Paper: 32;
    report: 96."""
    epochs: int = 1200
    """Passes over the unlabelled images. Authors' code: 1,200."""
    batch_size: int = 100
    """Labelled images per step over all ranks. Authors' code: 100."""
    mu: Count = 1
    """Unlabelled images per labelled one, and as many generated ones. Authors' code: 1."""
    noise_size: Count = 100
    """Size of the noise vector behind an image, drawn uniformly from [0, 1). Authors' code: 100."""
    generator_width: Count = 128
    """Generator's channels at half the resolution; each earlier layer has twice as many, up to 8 times this.
    Authors' code: 128."""
    dropout: float = 0.5
    """Dropout rate in the discriminator, and 0.4 times this rate on its input. Authors' code: 0.5 and 0.2."""
    lr: float = 3e-4
    """Learning rate of Adam, for the discriminator. Authors' code: 0.0003."""
    lr_generator: float = 3e-4
    """Learning rate of Adam, for the generator. Authors' code: 0.0003."""
    flat_share: Share = 2 / 3
    """Fraction of the run after which learning rates fall linearly to 0. Authors' code: 800 / 1,200."""
    ema_decay: Share = 0.9999
    """Decay of the moving average of the discriminator's weights, which is measured. During a warm-up the
    decay is smaller. Authors' code: 0.9999, from zero instead of the warm-up."""

    def __post_init__(self) -> None:
        """Refuse options of SGD, since Adam with one rate for the discriminator would ignore them."""
        super().__post_init__()
        for name in ("lr_head", "lr_vectors", "momentum", "weight_decay"):
            if not is_usual(self, name):
                raise UserError(
                    f"{name}: expected none, since Adam moves the whole discriminator at --lr without weight "
                    f"decay, found {getattr(self, name)}; leave it out"
                )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch

from engine.objectives.ssl_gan import discriminator_loss, diversity, feature_matching_loss
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.draws import StepDraws
from engine.train.gan_recipe import GanRecipe, fixed
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, flat_then_linear
from loaders import open_pack
from loaders.batch import PairedBatch
from loaders.classification import SemiLoaders
from loaders.views import presets


class SslGan(GanRecipe, ClassifierRecipe):
    """A classifier that is also the discriminator, and a generator."""

    name = "ssl_gan"

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__(config, classes, average="average")
        self.config = config
        assert self.average is not None
        self.add_generator(config, self.classifier.backbone, self.average.backbone)

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Classify, tell real from generated images, and match their mean features (sections 3.1 and 5)."""
        (x,), labels = self.mixed(batch.labeled, step)
        unlabeled = batch.unlabeled.views[0]
        draws = StepDraws(self.config.seed, step, x.device)
        noise = draws.uniform(len(unlabeled), self.config.noise_size)
        generated = self.generate(noise)
        logits = self.classify(x, unlabeled, generated.detach())
        terms = discriminator_loss(*(logits[0], labels, logits[1], logits[2]), self.class_weights)
        backbone = self.classifier.backbone
        matching = feature_matching_loss(fixed(backbone, unlabeled), fixed(backbone, generated))
        spread = diversity(generated.detach())
        with torch.no_grad():
            self.real_spread.copy_(diversity(unlabeled))
        metrics = {
            "top1": top1_of(logits[0], labels),
            "supervised": terms.supervised.detach(),
            "unsupervised": terms.unsupervised.detach(),
            "matching": matching.detach(),
            "p_real": terms.real,
            "p_generated": terms.generated,
            "diversity": spread / self.real_spread,
        }
        return StepOutput(terms.loss + matching, metrics)

    def make_optimizer(self) -> torch.optim.Adam:
        """Return Adam with separate learning rates for discriminator and generator."""
        return self.rivals(self.config.lr, self.classifier)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return learning rates that stay constant, then fall linearly to 0."""
        return flat_then_linear(total_steps, self.config.flat_share)

    def after_step(self, step: int) -> None:
        """Update the moving average of the discriminator's weights."""
        self.update_average(step, self.config.ema_decay)


def run(config: Config) -> RunSummary:
    """Train on a pack and write a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    config = config.on_pack(pack)
    view = (presets.weak(config.resolution, config.flip_p),)
    return run_recipe(config, lambda: SslGan(config, pack.classes), SemiLoaders(pack, config, view, view))


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(SslGan.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
