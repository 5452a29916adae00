"""The base class of recipes with a generator: its images, sheets of samples, and a report of collapse."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.nets.gan_networks import Discriminator, Generator
from engine.report.pictures import save_rows
from engine.train.distributed import rank
from engine.train.gan_config import GanConfig
from engine.train.recipe import Recipe
from loaders.views.policy import IMAGENET

SHEET_ROWS, SHEET_COLUMNS = 6, 12


class GanRecipe(Recipe):
    """A recipe with a generator and one or more discriminators."""

    own_optimizer = True  # which balances two competing networks
    gan: GanConfig
    generator: Generator
    mean: Tensor
    std: Tensor
    real_spread: Tensor

    def add_generator(self, config: GanConfig, *discriminators: nn.Module) -> None:
        """Build the generator and set the discriminators' dropout; called after all other networks exist."""
        for network in discriminators:
            assert isinstance(network, Discriminator)
            network.set_dropout(config.dropout)
        self.gan = config
        self.generator = Generator(config.resolution, config.noise_size, config.generator_width)
        self.register_buffer("mean", torch.tensor(IMAGENET.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET.std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("real_spread", torch.zeros(()))

    def generate(self, noise: Tensor) -> Tensor:
        """Map noise [G, noise_size] to images normalised like the loader's, [G, 3, H, W]."""
        intensities = 0.5 + 0.5 * self.generator(noise)
        images: Tensor = (intensities - self.mean) / self.std
        return images

    def rivals(self, lr: float, *discriminator: nn.Module) -> torch.optim.Adam:
        """Return Adam with learning rate `lr` for the discriminators, `lr_generator` for the generator."""
        groups = [
            {"params": [p for module in discriminator for p in module.parameters()], "lr": lr},
            {"params": list(self.generator.parameters()), "lr": self.gan.lr_generator},
        ]
        return torch.optim.Adam(groups, betas=(self.gan.beta1, 0.999))

    def begin_epoch(self, epoch: int) -> None:
        """Write a sheet of the generator's samples, except before the first epoch; see `write_sheet`."""
        if epoch > 0 and rank() == 0:
            self.write_sheet(f"epoch-{epoch:04d}")

    def write_results(self, out: Path) -> None:
        """Write the last sheet of samples."""
        self.write_sheet("last")

    def write_sheet(self, name: str) -> None:
        """Write samples/<name>.png, and report any collapse; all sheets of a run use the same noise."""
        device = self.real_spread.device
        generator = torch.Generator(device).manual_seed(self.gan.seed)
        noise = torch.rand(
            SHEET_ROWS * SHEET_COLUMNS, self.gan.noise_size, generator=generator, device=device
        )
        training = self.generator.training
        images = self.generator.eval()(noise)
        self.generator.train(training)
        folder = self.gan.out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        save_rows(folder / f"{name}.png", (0.5 + 0.5 * images).split(SHEET_COLUMNS))
        normalised = (0.5 + 0.5 * images - self.mean) / self.std
        spread = (normalised - normalised.mean(0)).square().mean().sqrt()  # on this rank alone
        share = float(spread / self.real_spread)
        if share < self.gan.collapse_share:
            print(
                f"samples/{name}.png: the generator has collapsed, its images vary {share:.1%} as much as "
                "real ones; lower --lr-generator or raise --lr",
                file=sys.stderr,
            )


def fixed(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's output for images, with gradients for the images and none for the weights."""
    weights = {name: p.detach() for name, p in network.named_parameters()}
    output: Tensor = functional_call(network, weights, (x,))
    return output
