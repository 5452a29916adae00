r"""Colourisation: pre-training by predicting the colours of a gray image.

Example:
    python recipes/colorization.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --epochs 50 --lr 0.001 --out runs/colorization

Source: Zhang, Isola, Efros 2016, "Colorful Image Colorization" (arXiv 1603.08511), and Larsson et al. 2017,
"Colorization as a Proxy Task for Visual Understanding" (arXiv 1703.04044), who use it to learn features;
Zhang et al.'s published code for the sizes of images, views and batches.

The backbone sees the lightness of a view, copied to all three channels; the target is the colour of the same
view at a quarter of its side length. Images that are gray already teach nothing about colours. A
finished run contains `colorized.png`: some views as lightness, in predicted colours, and in their own.

The algorithm is in `Colorization.training_step`, its loss in `engine.objectives.colorization`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.train.run_config import RunConfig
from loaders.common.checks import Count
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(RunConfig):
    """Pre-train a backbone with colourisation."""

    compares_pixels = True
    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any convolutional timm name, or tiny_resnet for a CPU. Paper: a network like VGG, and
    AlexNet for the features."""
    resolution: int = 176
    """Side length of the views in pixels, at least 16. Authors' code: 176."""
    min_crop: float = 0.47
    """Smallest fraction of the image's area that a view shows. Authors' code: always (176/256)^2."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning."""
    head_width: Count = 256
    """Channels between the backbone's feature map and the colour logits. Paper: 256."""
    epochs: int = 14
    """Passes over the split. Paper: 450,000 steps, which is 14 passes over ImageNet."""
    batch_size: int = 40
    """Images per step over all ranks. Authors' code: 40."""
    lr: float = 3e-5
    """Peak learning rate of Adam. Paper: 0.00003, for weeks of training; for hours, use 0.001."""
    lr_milestones: tuple[float, ...] = (6.2, 11.7)
    """Epochs after which the learning rate falls. Paper: these epochs, as 200,000 and 375,000 steps."""
    lr_decay: float = 0.32
    """Factor by which each milestone multiplies the learning rate. Paper: 3e-5, then 1e-5, then 3e-6."""
    weight_decay: float = 1e-3
    """Weight decay of all parameters. Paper: 0.001."""

    def __post_init__(self) -> None:
        """Refuse views whose target, at a quarter of the side length, would be too small."""
        super().__post_init__()
        if self.resolution < 16:
            raise UserError(f"resolution: expected at least 16, found {self.resolution}; raise it")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
import torch.nn.functional as F
from torch import Tensor

from engine.nets.color_head import MapHead, last_map
from engine.nets.variational import Intensities
from engine.objectives.colorization import (
    annealed_mean,
    color_bins,
    colorization_loss,
    encode,
    lab_to_rgb,
    rarity_weights,
    rgb_to_lab,
)
from engine.report.pictures import save_rows
from engine.train.distributed import all_reduce_sum
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.samples import load_samples
from engine.train.schedule import Schedule, step_decay
from loaders.batch import Batch
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets
from loaders.views.policy import IMAGENET

SHRINKAGE = 4


class Colorization(Recipe):
    """Backbone, and a head that predicts colours from the backbone's feature map."""

    name = "colorization"
    parts = "rows"
    bins: Tensor
    counts: Tensor

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        self.make_backbone(config.backbone, config.resolution)
        self.side = config.resolution // SHRINKAGE
        self.register_buffer("bins", color_bins(), persistent=False)
        self.head = MapHead(self.backbone, config.resolution, self.side, config.head_width, len(self.bins))
        self.to_intensities = Intensities(IMAGENET.mean, IMAGENET.std)
        # Saved in checkpoints: how often each colour occurred so far, which gives the rarity weights.
        self.register_buffer("counts", torch.zeros(len(self.bins), dtype=torch.float64))
        self._seen: tuple[int, list[Tensor]] = (-1, [])

    def decolored(self, lab: Tensor) -> Tensor:
        """Return the lightness of L*a*b* images as gray views [B, 3, H, W], normalised like the loader's."""
        gray = (lab[:, :1] / 100.0).expand(-1, 3, -1, -1)
        views: Tensor = (gray - self.to_intensities.mean) / self.to_intensities.std
        return views

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Classify the colour at every position from the lightness alone (equation 2)."""
        lab = rgb_to_lab(self.to_intensities(batch.views[0]))
        nearest, shares = encode(F.adaptive_avg_pool2d(lab[:, 1:], self.side), self.bins)
        logits = self.head(last_map(self.backbone, self.decolored(lab)))
        terms = colorization_loss(logits, nearest, shares, rarity_weights(self.counts, self.bins))
        if self._seen[0] != step:
            self._seen = (step, [])
        ones = torch.ones_like(nearest[:, 0], dtype=torch.float64)
        self._seen[1].append(torch.zeros_like(self.counts).scatter_add_(0, nearest[:, 0], ones))
        return StepOutput(terms.loss, {"color_top1": terms.top1})

    def after_step(self, step: int) -> None:
        """Add the colours of the step on all ranks to the counts."""
        self.counts += all_reduce_sum(torch.stack(self._seen[1]).sum(0))
        self._seen = (-1, [])

    def make_optimizer(self) -> torch.optim.Adam:
        """Return Adam with the paper's betas."""
        trained = [p for p in self.parameters() if p.requires_grad]
        config = self.config
        return torch.optim.Adam(trained, config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the step decay of the learning rate."""
        milestones = [round(epoch * steps_per_epoch) for epoch in self.config.lr_milestones]
        return step_decay(milestones, self.config.lr_decay)

    def write_results(self, out: Path) -> None:
        """Draw the lightness, the predicted colours and the views into `out`/colorized.png."""
        (views, *_), _ = load_samples(out)
        x = self.to_intensities(views.to(self.bins.device))
        lab = rgb_to_lab(x)
        self.eval()
        logits = self.head(last_map(self.backbone, self.decolored(lab)))
        found = F.interpolate(annealed_mean(logits, self.bins), x.shape[2:], mode="bilinear")
        gray = lab_to_rgb(torch.cat([lab[:, :1], torch.zeros_like(found)], 1))
        save_rows(out / "colorized.png", [gray, lab_to_rgb(torch.cat([lab[:, :1], found], 1)), x])


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
    return run_recipe(config, lambda: Colorization(config), PretrainingLoaders(config, (view,)))


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Colorization.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
