r"""Mean Teacher: a student learns to agree with its own moving average on differently augmented views.

Example:
    python recipes/mean_teacher.py --pack packs/mine --labels-per-class 25 --out runs/mean-teacher

Source: Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv 1703.01780), and the
authors' published code for most constants; the report is Zhu, Mananghaya, Rivera Ruiz 2019 (ResNet-152, 64
labels per class: 30.5 % supervised, 34.4 % Mean Teacher).

The algorithm is in `MeanTeacher.training_step`, its loss in `engine.objectives.mean_teacher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.choices import Distance
from engine.train.classifier_config import SemiConfig
from loaders.common.checks import Count, Share
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(SemiConfig):
    """Train a classifier with Mean Teacher."""

    backbone: str = "wrn_28_2"
    """wrn_28_2, compact_cnn for a CPU, or any timm name. Paper: a 13-layer network, or a 26-layer ResNet;
    report: resnet152."""
    resolution: int = 32
    """Side length of the views in pixels. Paper: 32; report: 96."""
    epochs: int = 300
    """Passes over the unlabelled images. Authors' code: 300 with 4,000 labels."""
    batch_size: int = 32
    """Labelled images per step over all ranks. Authors' code: 31 of 128 images."""
    mu: Count = 3
    """Unlabelled images per labelled one. Authors' code: 97 to 31."""
    consistency: Distance = "mse"
    """Distance between the class probabilities of student and teacher. Paper: mse; kl on ImageNet."""
    consistency_weight: float = 100.0
    """Weight of the consistency loss after its ramp; the cross-entropy is divided by the number of all images
    of the step. Authors' code: 100 for mse, 10 for kl; as a rule, from the number of classes to its
    square for mse, and from 1 to 10 for kl."""
    ramp_epochs: float = 5.0
    """Epochs over which --consistency-weight ramps up as exp(-5 (1 - t)^2). Authors' code: 5."""
    ema_decay_early: Share = 0.99
    """Decay of the teacher's moving average during the ramp. In the first steps the teacher is the plain mean
    of all students so far, as in the authors' code. Paper: 0.99."""
    ema_decay: Share = 0.999
    """Decay of the teacher's moving average after the ramp. Paper: 0.999."""
    lr: float = 0.05
    """Peak learning rate; a cosine takes it down to 0. Authors' code: 0.05 per GPU."""
    weight_decay: float = 2e-4
    """Weight decay of all parameters. Authors' code: 0.0002."""
    min_crop: Share = 0.08
    """Smallest fraction of the image's area that a view shows. Authors' code on ImageNet: 0.08. For images
    of 32 pixels use at least 0.5; the paper shifts them by up to 2 pixels and adds Gaussian noise instead."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch

from engine.objectives.mean_teacher import class_loss, consistency_loss, ramp_up, teacher_decay
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders import open_pack
from loaders.batch import PairedBatch
from loaders.classification import SemiLoaders
from loaders.views import presets


class MeanTeacher(ClassifierRecipe):
    """A student, and a teacher whose weights are the average of the student's."""

    name = "mean_teacher"
    parts = "rows"

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the networks; call `seed_everything` first."""
        nesterov = config.momentum > 0.0
        super().__init__(config, classes, average="own", nesterov=nesterov, decay_vectors=True)
        self.config = config
        self.ramp_steps = 0

    @property
    def rules(self) -> Mapping[str, str]:
        """Rules of training that no option sets; a checkpoint made under other rules is refused."""
        return {**super().rules, "class loss": "divided by all images", "weight decay": "of all parameters"}

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Classify the labelled images; on all images, agree with the teacher, which sees other views."""
        assert self.average is not None
        labeled, labels = self.mixed(batch.labeled, step)
        pairs = (labeled, batch.unlabeled.views)
        logits = self.classify(*(views[0] for views in pairs))
        with torch.no_grad():
            teacher = self.average(torch.cat([views[1] for views in pairs])).float()
        supervised = class_loss(logits[0], labels, len(teacher), self.class_weights)
        consistency = consistency_loss(torch.cat(logits), teacher, self.config.consistency)
        weight = self.config.consistency_weight * ramp_up(step, self.ramp_steps)
        metrics = {"top1": top1_of(logits[0], labels)}
        metrics |= {"supervised": supervised.detach(), "consistency": consistency.detach()}
        return StepOutput(supervised + weight * consistency, metrics)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a cosine, and store the length of the ramp in steps."""
        self.ramp_steps = round(self.config.ramp_epochs * steps_per_epoch)
        return warmup_cosine(total_steps, 0)

    def after_step(self, step: int) -> None:
        """Update the teacher's weights; its BatchNorm statistics come from its own forward passes."""
        early, late = self.config.ema_decay_early, self.config.ema_decay
        self.update_average(step, teacher_decay(step, self.ramp_steps, early, late))


def run(config: Config) -> RunSummary:
    """Train on a pack and write a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    config = config.on_pack(pack)
    view = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
    loaders = SemiLoaders(pack, config, (view, view), (view, view))
    return run_recipe(config, lambda: MeanTeacher(config, pack.classes), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(MeanTeacher.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
