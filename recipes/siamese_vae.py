r"""Siamese VAE: a VAE whose latent means are closer for two views of one image than for two images.

Example:
    python recipes/siamese_vae.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 20 --out runs/siamese_vae

Source: the report by Muaz and Kumar, "Semi-supervised image classification with low-resource labelled data"
(the siamese regularised VAE), which takes its triplets from Wang, Gupta 2015, "Unsupervised Learning of
Visual Representations using Videos" (arXiv 1505.00687), and its VAE from Kingma, Welling 2014.

The algorithm is in `SiameseVae.training_step`, its losses in `engine.objectives.vae` and
`engine.objectives.triplet`. A finished run contains `reconstructions.png`, see recipes/vae.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.choices import Reconstruction, TripletDistance, TripletPositive
from engine.train.run_config import RunConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(RunConfig):
    """Pre-train a backbone as the encoder of a siamese VAE."""

    compares_pixels = True
    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any timm name, or tiny_resnet for a CPU. Report: AlexNet."""
    resolution: int = 96
    """Side length of the views in pixels, a multiple of 16. This project's choice."""
    positive: TripletPositive = "crop"
    """The two views of an image. crop: two random crops; affine: the centred square, and the same square
    rotated, shifted and sheared at random."""
    min_crop: float = 0.2
    """Smallest fraction of the image's area that a crop shows. This project's choice."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning."""
    epochs: int = 20
    """Passes over the split. Report: 20."""
    batch_size: int = 128
    """Images per step over all ranks. This project's choice; Kingma and Welling: 100."""
    num_latent: Count = 128
    """Size of the latent code. This project's choice; Kingma and Welling: 2 to 200."""
    decoder_width: Count = 32
    """Channels of the decoder's last hidden feature map. This project's choice."""
    beta: float = 1.0
    """Weight of the divergence from a standard normal. VAE: 1; 0: a plain autoencoder with triplets."""
    distance: TripletDistance = "cosine"
    """Distance between two codes. cosine: 1 - cosine, as in Wang and Gupta; euclidean: Euclidean distance,
    for which a good --margin depends on the scale of the codes."""
    triplet_weight: float = 100.0
    """Weight of the triplet loss. This project's choice: large, since the reconstruction sums over pixels."""
    margin: float = 0.5
    """Margin by which another image should be farther than the other view. Wang and Gupta: 0.5 (cosine)."""
    reconstruction: Reconstruction = "bce"
    """Reconstruction loss. bce: cross-entropy (Kingma and Welling, appendix C.1); mse: squared error."""
    lr: float = 1e-3
    """Learning rate of Adam. This project's choice; Kingma and Welling used Adagrad."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch

from engine.nets.variational import Intensities, LatentCode, reconstruct_and_sample
from engine.objectives.triplet import triplet_loss
from engine.objectives.vae import reparameterise, vae_loss
from engine.report.pictures import save_rows
from engine.train.draws import StepDraws
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.samples import load_samples
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets
from loaders.views.policy import IMAGENET


class SiameseVae(Recipe):
    """Encoder and decoder; the encoder's backbone is the result of the pre-training."""

    name = "siamese_vae"

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution)
        self.code = LatentCode(
            num_features, config.num_latent, config.resolution, config.decoder_width, config.beta > 0
        )
        self.to_intensities = Intensities(IMAGENET.mean, IMAGENET.std)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Reconstruct both views; pull their latent means closer to each other than to the next image's."""
        x_a, x_b = batch.views
        x = torch.cat([x_a, x_b])
        mean, log_variance = self.code.encode(self.backbone(x))
        z = mean
        if log_variance is not None:
            draws = StepDraws(self.config.seed, step, x.device)
            noise = torch.cat([draws.normal(*x_a.shape[:1], mean.shape[1]) for _ in batch.views])
            z = reparameterise(mean, log_variance, noise)
        target = self.to_intensities(x)
        logits = self.code.decode(z)
        terms = vae_loss(logits, target, mean, log_variance, self.config.beta, self.config.reconstruction)
        mean_a, mean_b = mean.chunk(2)
        triplets = triplet_loss(mean_a, mean_b, self.config.margin, self.config.distance)
        return StepOutput(
            terms.loss + self.config.triplet_weight * triplets.loss,
            {
                "reconstruction": terms.reconstruction.detach(),
                "kl": terms.kl.detach(),
                "triplet": triplets.loss.detach(),
                "triplets_ordered": triplets.ordered,
            },
        )

    def make_optimizer(self) -> torch.optim.Adam:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), self.config.lr)

    def write_results(self, out: Path) -> None:
        """Draw images, reconstructions and samples into `out`/reconstructions.png."""
        (views, *_), _ = load_samples(out)
        x = views.to(self.to_intensities.mean.device)
        rows = reconstruct_and_sample(self.backbone, self.code, self.to_intensities, x, self.config.seed)
        save_rows(out / "reconstructions.png", rows)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    crop = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
    affine = presets.affine(config.resolution, config.flip_p)
    loaders = PretrainingLoaders(config, (crop, crop) if config.positive == "crop" else affine)
    return run_recipe(config, lambda: SiameseVae(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(SiameseVae.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
