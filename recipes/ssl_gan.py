r"""Semi-supervised DCGAN: a classifier that learns from telling generated images from real ones.

Example:
    python recipes/ssl_gan.py --pack packs/mine --labels-per-class 25 --out runs/ssl-gan

Source: Salimans et al. 2016, "Improved Techniques for Training GANs" (arXiv 1606.03498), section 5, with the
constants of its published code; the report is Zhu, Mananghaya, Rivera Ruiz 2019, where it came to 10.1 %
beside 30.5 % of plain supervised training.

Discriminator and generator take their steps at once, from one backward pass: the discriminator's weights
are held fixed in the generator's loss, and generated images are in the discriminator's. Each epoch leaves a
sheet of generated images in samples/, the end of the run last.png, and the run says when they have become all
alike.

The algorithm box is `SslGan.training_step`; its losses are `engine.objectives.ssl_gan`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.train.classifier_config import ClassifierConfig
from engine.train.run_config import check_shares
from loaders.common.errors import UserError, check_numbers, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Train a classifier as the discriminator of a GAN."""

    unlabeled_splits: tuple[str, ...] = ("train", "unlabeled")
    """Splits whose images, without their labels, are the unlabelled ones; the labelled stand among them."""
    backbone: str = "gan_discriminator_96"
    """The discriminator and its width. Paper: 96 and 192 channels."""
    resolution: int = 32
    """Side of the images: 16, 32, 64 or 128. Paper: 32."""
    epochs: int = 1200
    """Passes over the unlabelled images. Authors' code: 1,200."""
    batch_size: int = 100
    """Labelled images per step over all ranks. Authors' code: 100."""
    mu: int = 1
    """Unlabelled, and generated, images per labelled one. Authors' code: 1."""
    noise_size: int = 100
    """Numbers that an image is generated from, drawn uniformly from [0, 1). Authors' code: 100."""
    generator_width: int = 128
    """Channels at half the resolution. Authors' code: 128, 256, 512."""
    dropout: float = 0.5
    """Dropout in the discriminator; 0.4 of it on the image. Authors' code: 0.5 and 0.2."""
    lr: float = 3e-4
    """Learning rate of Adam, for the discriminator. Authors' code: 0.0003."""
    lr_generator: float = 3e-4
    """Learning rate of Adam, for the generator. Authors' code: 0.0003."""
    beta1: float = 0.5
    """First beta, the momentum, of Adam. Authors' code: 0.5."""
    flat_share: float = 2 / 3
    """Share of the run before the rates fall linearly to 0. Authors' code: 800 of 1,200 epochs."""
    ema_decay: float = 0.9999
    """Decay of the average of the discriminator's weights, which is measured, after a warm-up in which it is
    their plain mean. Authors' code: 0.9999, from zero instead of the warm-up."""
    collapse_share: float = 0.1
    """Say that the generator has collapsed when its images vary less than this share of the real ones."""

    def __post_init__(self) -> None:
        """Refuse what has no discriminator."""
        super().__post_init__()
        if not self.backbone.startswith("gan_discriminator_"):
            raise UserError(f"backbone: expected gan_discriminator_<width>, found {self.backbone!r}")
        check_shares(self, ("flat_share", "ema_decay"))
        check_numbers(self, ("noise_size", "generator_width"))
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout: expected a value in [0, 1), found {self.dropout}")


if __name__ == "__main__":  # before the imports that take seconds
    check_command_line(Config, __doc__)


import torch
from torch import Tensor
from torch.func import functional_call

from engine.nets.gan_networks import Discriminator, Generator
from engine.objectives.ssl_gan import discriminator_loss, diversity, feature_matching_loss
from engine.report.pictures import save_rows
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.distributed import rank
from engine.train.draws import StepDraws
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, flat_then_linear
from loaders import open_pack
from loaders.batch import PairedBatch
from loaders.classification import SemiLoaders
from loaders.views import presets
from loaders.views.policy import IMAGENET

SHEET_ROWS, SHEET_COLUMNS = 6, 12


class SslGan(ClassifierRecipe):
    """A classifier and a generator whose images it must not take for real."""

    name = "ssl_gan"
    fixed_views = True
    own_optimizer = True  # two networks against each other
    mean: Tensor
    std: Tensor
    real_spread: Tensor

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__(config, classes, average="average")
        self.config = config
        for network in (self.classifier, self.average):
            assert network is not None
            assert isinstance(network.backbone, Discriminator)
            network.backbone.set_dropout(config.dropout)
        self.generator = Generator(config.resolution, config.noise_size, config.generator_width)
        self.register_buffer("mean", torch.tensor(IMAGENET.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET.std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("real_spread", torch.zeros(()))

    def generate(self, noise: Tensor) -> Tensor:
        """Map noise [G, noise_size] to images normalised like the loader's, [G, 3, H, W]."""
        intensities = 0.5 + 0.5 * self.generator(noise)
        images: Tensor = (intensities - self.mean) / self.std
        return images

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Classify and tell real from generated; match the features of both (section 3.1 and 5)."""
        x, unlabeled = batch.labeled.views[0], batch.unlabeled.views[0]
        labels = batch.labeled.labels
        assert labels is not None
        draws = StepDraws(self.config.seed, step, x.device)
        noise = draws.uniform(len(unlabeled), self.config.noise_size)
        generated = self.generate(noise)
        logits = self.classify(x, unlabeled, generated.detach())
        terms = discriminator_loss(*(logits[0], labels, logits[1], logits[2]), self.class_weights)
        matching = feature_matching_loss(self.fixed_features(unlabeled), self.fixed_features(generated))
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

    def fixed_features(self, x: Tensor) -> Tensor:
        """Map images to the discriminator's features without a gradient for its weights, [B, D]."""
        backbone = self.classifier.backbone
        weights = {name: p.detach() for name, p in backbone.named_parameters()}
        features: Tensor = functional_call(backbone, weights, (x,))
        return features

    def make_optimizer(self) -> torch.optim.Adam:  # type: ignore[override]
        """Return Adam with a rate for the discriminator and one for the generator."""
        groups = [
            {"params": list(self.classifier.parameters()), "lr": self.config.lr},
            {"params": list(self.generator.parameters()), "lr": self.config.lr_generator},
        ]
        return torch.optim.Adam(groups, betas=(self.config.beta1, 0.999))

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Keep the rates, then let them fall to 0."""
        return flat_then_linear(total_steps, self.config.flat_share)

    def after_step(self, step: int) -> None:
        """Move the averaged discriminator."""
        self.update_average(step, self.config.ema_decay)

    def begin_epoch(self, epoch: int) -> None:
        """Draw a sheet of what the generator has learned, and say whether it has collapsed."""
        if epoch > 0 and rank() == 0:
            self.write_sheet(f"epoch-{epoch:04d}")

    def write_results(self, out: Path) -> None:
        """Draw the last sheet; --steps and --max-steps end a run inside an epoch."""
        self.write_sheet("last")

    def write_sheet(self, name: str) -> None:
        """Write samples/<name>.png; the noise is the same for all sheets of a run."""
        device = self.real_spread.device
        generator = torch.Generator(device).manual_seed(self.config.seed)
        noise = torch.rand(
            SHEET_ROWS * SHEET_COLUMNS, self.config.noise_size, generator=generator, device=device
        )
        training = self.generator.training
        images = self.generator.eval()(noise)
        self.generator.train(training)
        folder = self.config.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        save_rows(folder / f"{name}.png", (0.5 + 0.5 * images).split(SHEET_COLUMNS))
        normalised = (0.5 + 0.5 * images - self.mean) / self.std
        spread = (normalised - normalised.mean(0)).square().mean().sqrt()  # of this rank alone
        share = float(spread / self.real_spread)
        if share < self.config.collapse_share:
            print(
                f"samples/{name}.png: the generator has collapsed, its images vary {share:.1%} as much as "
                "real ones; lower --lr-generator or raise --lr",
                file=sys.stderr,
            )


def run(config: Config) -> RunSummary:
    """Train on a pack and leave a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    view = (presets.weak(config.resolution, config.flip_p),)
    return run_recipe(config, lambda: SslGan(config, pack.classes), SemiLoaders(pack, config, view, view))


def main() -> None:
    """Run the command line."""
    print_summary(SslGan.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
