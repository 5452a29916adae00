r"""VAE: pre-training by reconstruction from a noisy code; with `--beta 0` a plain autoencoder.

Example:
    python recipes/vae.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 20 --out runs/vae

Source: Kingma, Welling 2014, "Auto-Encoding Variational Bayes" (arXiv 1312.6114); Higgins et al. 2017,
"beta-VAE", for the weight of the divergence. The paper is the former; the report is Muaz and Kumar (see
recipes/siamese_vae.py).

The algorithm is in `Vae.training_step`, its loss in `engine.objectives.vae`. A finished run contains
`reconstructions.png`: images, their reconstructions, and samples from the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.choices import Reconstruction
from engine.train.run_config import RunConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(RunConfig):
    """Pre-train a backbone as the encoder of a VAE."""

    compares_pixels = True
    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any timm name, or tiny_resnet for a CPU. Report: AlexNet."""
    resolution: int = 96
    """Side length of the views in pixels, a multiple of 16. This project's choice."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning."""
    epochs: int = 20
    """Passes over the split. Report: 20."""
    batch_size: int = 128
    """Images per step over all ranks. This project's choice; paper: 100."""
    num_latent: Count = 128
    """Size of the latent code. This project's choice; paper: 2 to 200."""
    decoder_width: Count = 32
    """Channels of the decoder's last hidden feature map. This project's choice."""
    beta: float = 1.0
    """Weight of the divergence from a standard normal. VAE: 1; beta-VAE: more; 0: a plain autoencoder."""
    reconstruction: Reconstruction = "bce"
    """Reconstruction loss. bce: cross-entropy of intensities (paper, appendix C.1); mse: squared error."""
    lr: float = 1e-3
    """Learning rate of Adam. This project's choice; the paper used Adagrad."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch

from engine.nets.variational import Intensities, LatentCode, reconstruct_and_sample
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


class Vae(Recipe):
    """Encoder and decoder; the encoder's backbone is the result of the pre-training."""

    name = "vae"
    parts = "rows"

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
        """Encode, draw a code, decode, and compare with the image (algorithm 1)."""
        x = batch.views[0]
        mean, log_variance = self.code.encode(self.backbone(x))
        z = mean
        if log_variance is not None:
            noise = StepDraws(self.config.seed, step, x.device).normal(*mean.shape)
            z = reparameterise(mean, log_variance, noise)
        logits = self.code.decode(z)
        target = self.to_intensities(x)
        terms = vae_loss(logits, target, mean, log_variance, self.config.beta, self.config.reconstruction)
        return StepOutput(
            terms.loss, {"reconstruction": terms.reconstruction.detach(), "kl": terms.kl.detach()}
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
    # The encoder sees normalised views, like every pre-trained backbone; `to_intensities` makes the target.
    view = replace(presets.reconstruction(config.resolution, config.flip_p), normalize=IMAGENET)
    loaders = PretrainingLoaders(config, (view,))
    return run_recipe(config, lambda: Vae(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Vae.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
