r"""RotNet: self-supervised pre-training by recognising quarter turns.

Example:
    python recipes/rotnet.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --hidden --epochs 50 --out runs/rotnet

Source: Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image
Rotations" (arXiv 1803.07728), and the authors' published code for details that the paper leaves open.

The algorithm is in `RotNet.training_step`, its loss in `engine.objectives.rotnet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.train.run_config import StartConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(StartConfig):
    """Pre-train a backbone with RotNet."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels are not read."""
    label_free: ClassVar[tuple[str, ...]] = ("test_split",)
    test_split: str = ""
    """Split on which to measure the rotation accuracy at the end, which needs no labels; "" for none."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any timm name, or tiny_resnet for a CPU. Paper: AlexNet with BatchNorm."""
    hidden: tuple[Count, ...] = (4096, 4096)
    """Sizes of the fully connected layers between backbone and logits; may be empty. Paper: 4096 4096."""
    resolution: Count = 224
    """Side length of the views in pixels. Authors' code: 224."""
    min_crop: float = 0.08
    """Smallest fraction of the image's area that a view shows. Authors' code: 0.08."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning. Authors' code: 0.5."""
    epochs: Count = 50
    """Passes over the split. Authors' code: 50; Muaz and Kumar: 63."""
    batch_size: Count = 192
    """Images per step over all ranks, each seen in four rotations. Paper: 192."""
    lr: float = 0.01
    """Peak learning rate. Paper: 0.01."""
    lr_milestones: tuple[float, ...] = (15.0, 30.0, 45.0)
    """Epochs after which the learning rate falls. Authors' code: 15 30 45."""
    lr_decay: float = 0.1
    """Factor by which each milestone multiplies the learning rate. Paper: 0.1."""
    momentum: float = 0.9
    """Nesterov momentum of SGD. Paper: 0.9."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters. Paper: 5e-4."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from pathlib import Path

import numpy as np
import torch

from engine.evaluate.predict import Accuracy, evaluation_mode
from engine.nets.backbones import Projector
from engine.objectives.rotnet import NUM_ROTATIONS, rotate_four, rotnet_loss
from engine.train.bad_rows import read_in_order
from engine.train.distributed import all_reduce_sum, on_main
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, step_decay
from loaders.batch import Batch, Loader
from loaders.common.files import to_json, write_atomic
from loaders.packs.labels.leaks import check_leak
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class RotNet(Recipe):
    """Backbone and a classifier of the four rotations."""

    name = "rotnet"
    parts = "rows"

    def __init__(self, config: Config) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__()
        self.config = config
        num_features = self.make_backbone(config.backbone, config.resolution, config.init)
        self.classifier = Projector(num_features, (*config.hidden, NUM_ROTATIONS))

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Show each image in all four rotations and predict the rotations (equation 3)."""
        logits = self.classifier(self.backbone(rotate_four(batch.views[0])))
        terms = rotnet_loss(logits)
        return StepOutput(terms.loss, {"rotation_top1": terms.top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with Nesterov's momentum (paper, section 4.2)."""
        config = self.config
        return torch.optim.SGD(
            self.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )

    def finish(self, out: Path, test_loader: Loader[Batch] | None, device: torch.device) -> Accuracy | None:
        """Measure the rotation accuracy on the test images, if there are any, and write rotations.json."""
        if test_loader is None:
            return None
        counts = torch.zeros(2, dtype=torch.float64, device=device)
        with evaluation_mode(self), torch.inference_mode():
            for batch in read_in_order(test_loader, out, device):
                turned = rotate_four(batch.views[0][batch.valid])
                if len(turned):
                    share = rotnet_loss(self.classifier(self.backbone(turned))).top1
                    counts += torch.stack(
                        [share.double() * len(turned), torch.full_like(counts[0], len(turned))]
                    )
        right, num_turned = all_reduce_sum(counts).tolist()
        found = Accuracy(right / max(1.0, num_turned), int(num_turned))
        content = to_json({"top1": found.top1, "num_turned": found.num_images})
        on_main(lambda: write_atomic(out / "rotations.json", content))
        return found

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the step decay of the learning rate."""
        milestones = [round(epoch * steps_per_epoch) for epoch in self.config.lr_milestones]
        return step_decay(milestones, self.config.lr_decay)


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
    loaders = PretrainingLoaders(config, (view,), config.test_split)
    if config.test_split:
        images, measured = (loaders.pack.split(name) for name in (config.split, config.test_split))
        rows = images.rows(np.arange(len(images)))
        check_leak(loaders.pack, rows, measured, config.allow_leak, "images of --split")
    return run_recipe(config, lambda: RotNet(config), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(RotNet.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
