r"""Jigsaw: self-supervised pre-training by putting nine tiles back into order.

Example:
    python recipes/jigsaw.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --tile-size 28 --epochs 70 --out runs/jigsaw

Source: Noroozi, Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles"
(arXiv 1603.09246), and a published re-implementation for BatchNorm and epochs.

The algorithm is in `Jigsaw.training_step`; the permutations come from `engine.objectives.jigsaw`, the tiles
from `presets.tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.train.tile_config import GRID, TileConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(TileConfig):
    """Pre-train a convolutional backbone on jigsaw puzzles."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any convolutional timm name, or tiny_resnet for a CPU. Paper: AlexNet."""
    resolution: int = 225
    """Side length in pixels of the resized crop, which is cut into 3x3 cells. Paper: 225."""
    tile_size: Count = 64
    """Side length in pixels of a tile, which lies at a random place in its cell. Paper: 64 in cells of 75."""
    num_permutations: Count = 1000
    """Number of permutations to tell apart, chosen far from each other in Hamming distance. Paper: 1000."""
    min_crop: float = 0.5
    """Smallest fraction of the image's area in the crop. This project's choice; paper: always (225/256)^2."""
    gray_p: float = 0.3
    """Probability that an image is shown in gray, where colour gives no cue. Paper: 0.3."""
    tile_features: Count = 1024
    """Size of each tile's features before they are concatenated (fc6). Paper: 1024."""
    hidden: tuple[Count, ...] = (4096,)
    """Sizes of the layers on the concatenated features (fc7); may be empty. Paper: 4096."""
    epochs: int = 70
    """Passes over the split. Re-implementation: 70."""
    batch_size: int = 256
    """Images per step over all ranks. Paper: 256."""
    lr: float = 0.01
    """Constant learning rate. Paper: 0.01."""
    momentum: float = 0.9
    """Momentum of SGD. This project's choice."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters. This project's choice."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import Tensor, nn

from engine.nets.backbones import Projector, of_whole_images
from engine.objectives.cross_entropy import pretext_loss
from engine.objectives.jigsaw import permutation_set, shuffle_tiles
from engine.train.draws import StepDraws
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class Jigsaw(Recipe):
    """A backbone for single tiles, and a classifier of the permutation from the features of all tiles."""

    name = "jigsaw"
    parts = "rows"
    permutations: Tensor

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.tile_size)
        self.tile_layer = nn.Sequential(
            nn.Linear(num_features, config.tile_features, bias=False),
            nn.BatchNorm1d(config.tile_features),
            nn.ReLU(inplace=True),
        )
        sizes = (*config.hidden, config.num_permutations)
        self.classifier = Projector(GRID**2 * config.tile_features, sizes)
        chosen = permutation_set(config.num_permutations, GRID**2, config.seed)
        self.register_buffer("permutations", torch.from_numpy(chosen))

    @property
    def measured_backbone(self) -> nn.Module:
        """The backbone, trained on tiles, adapted to whole images."""
        return of_whole_images(self.backbone, self.backbone_name, self.config.resolution)

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Shuffle the tiles of each image and classify the permutation (section 4)."""
        tiles = torch.stack(batch.views, dim=1)
        draws = StepDraws(self.config.seed, step, tiles.device)
        choice = draws.integers(self.config.num_permutations, len(tiles))
        shuffled = shuffle_tiles(tiles, self.permutations, choice)
        flat = shuffled.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.tile_layer(self.backbone(flat))
        terms = pretext_loss(self.classifier(features.view(len(tiles), -1)), choice)
        return StepOutput(terms.loss, {"permutation_top1": terms.top1})

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
    return run_recipe(config, lambda: Jigsaw(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Jigsaw.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
