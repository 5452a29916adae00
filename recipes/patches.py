r"""Relative patches: self-supervised pre-training by predicting where one patch lies relative to another.

Example:
    python recipes/patches.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --tile-size 28 --epochs 70 --out runs/patches

Source: Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction"
(arXiv 1505.05192).

The algorithm is in `Patches.training_step`; the pairs come from `engine.objectives.patches`, the tiles from
`presets.tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.tile_config import GRID, TileConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(TileConfig):
    """Pre-train a convolutional backbone on the relative position of two patches."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any convolutional timm name, or tiny_resnet for a CPU. Paper: AlexNet."""
    resolution: int = 225
    """Side length in pixels of the resized crop, which is cut into 3x3 cells. This project's choice."""
    tile_size: Count = 64
    """Side length in pixels of a patch, placed at random in its cell. Paper: 96, gap of 48, jitter of 7."""
    min_crop: float = 0.5
    """Smallest fraction of the image's area that the crop shows. This project's choice."""
    gray_p: float = 0.5
    """Probability that an image is shown in gray, where chromatic aberration gives no cue. This project's
    choice; the paper drops two colour channels of every patch."""
    hidden: tuple[Count, ...] = (4096, 4096)
    """Sizes of the layers on both patches' joined features (fc7, fc8); may be empty. Paper: 4096 4096."""
    epochs: int = 70
    """Passes over the split. This project's choice."""
    batch_size: int = 256
    """Images per step over all ranks. This project's choice."""
    lr: float = 0.01
    """Constant learning rate. This project's choice."""
    momentum: float = 0.9
    """Momentum of SGD. This project's choice."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters. This project's choice."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import nn

from engine.nets.backbones import Projector, of_whole_images
from engine.objectives.cross_entropy import pretext_loss
from engine.objectives.patches import NUM_POSITIONS, choose_pairs
from engine.train.draws import StepDraws
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class Patches(Recipe):
    """Backbone on both patches, and a classifier of their relative position."""

    name = "patches"
    parts = "rows"

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.tile_size)
        self.classifier = Projector(2 * num_features, (*config.hidden, NUM_POSITIONS))

    @property
    def measured_backbone(self) -> nn.Module:
        """The backbone, trained on tiles, adapted to whole images."""
        return of_whole_images(self.backbone, self.backbone_name, self.config.resolution)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Predict, from the centre tile and one neighbour, which neighbour it is (section 3)."""
        tiles = torch.stack(batch.views, dim=1)
        position = StepDraws(self.config.seed, step, tiles.device).integers(NUM_POSITIONS, len(tiles))
        pair = torch.cat(choose_pairs(tiles, position))
        h = self.backbone(pair.contiguous(memory_format=torch.channels_last))
        terms = pretext_loss(self.classifier(torch.cat(h.chunk(2), dim=1)), position)
        return StepOutput(terms.loss, {"position_top1": terms.top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD."""
        config = self.config
        return torch.optim.SGD(
            self.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
        )


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    cell = config.resolution // GRID
    tiles = presets.tiles(config.tile_size, cell, config.min_crop, config.gray_p, GRID)
    loaders = PretrainingLoaders(config, tiles)
    return run_recipe(config, lambda: Patches(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Patches.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
