r"""Supervised training and fine-tuning: the baseline of every method that also reads unlabelled images.

Example:
    python recipes/supervised.py --pack packs/mine --labels-per-class 25 --out runs/supervised

Fine-tuning of a pre-trained backbone, as in the 2021 report:

    python recipes/supervised.py --pack packs/mine --init runs/barlow --backbone resnet50 \
        --resolution 96 --lr 0.05 --epochs 40 --weight-decay 0 --out runs/finetuned

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), for the training
on ImageNet; the reports are Zhu, Mananghaya, Rivera Ruiz 2019 (ResNet-152 as the baseline) and Zhou, Wan,
Li 2021, section 3.1 (fine-tuning).

The algorithm is in `Supervised.training_step`, its loss in `engine.objectives.supervised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.choices import ClassifierStart, LabeledView
from engine.train.classifier_config import ClassifierConfig
from loaders.common.checks import Share
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """Train a classifier on labels alone."""

    backbone: str = "resnet50"
    """compact_cnn for a CPU, wrn_28_2, or any timm name. 2019 report: resnet152; 2021 report: resnet50."""
    resolution: int = 224
    """Side length of the views in pixels. Paper: 224; reports: 96."""
    epochs: int = 90
    """Passes over the labelled images. Paper: about 120, but 90 is now usual; report's fine-tuning: 40."""
    batch_size: int = 256
    """Images per step over all ranks, or all labelled images if there are fewer. Paper: 256."""
    lr: float = 0.1
    """Peak learning rate; a cosine takes it down to 0. Paper: 0.1; report's fine-tuning: 0.05, all layers."""
    weight_decay: float = 1e-4
    """Weight decay of the weights; biases and BatchNorm have none. Paper: 0.0001; report's fine-tuning: 0."""
    warmup_epochs: float = 0.0
    """Epochs of linear learning-rate warm-up. Paper: none on ImageNet."""
    nesterov: bool = False
    """Use Nesterov's momentum."""
    view: LabeledView = "crop"
    """Augmentation of the images. crop: a random resized crop, as on ImageNet; shift: a random shift, as is
    usual on CIFAR; strong: FixMatch's strong view; gentle: the same with smaller magnitudes."""
    shift: Share | None = None
    """Largest shift of --view shift, as a fraction of the side; by default an eighth, as is usual. Jordan
    2024: 0.0625."""
    min_crop: Share = 0.08
    """Smallest fraction of the image's area that a random crop shows. Szegedy et al. 2015: 0.08."""
    label_smoothing: float = 0.0
    """Label smoothing: fraction of a label that is spread over all classes. Szegedy et al. 2016: 0.1."""
    usual_start: ClassVar[ClassifierStart] = "probe"
    ema_decay: Share | None = None
    """Decay of a moving average of the weights and of BatchNorm's statistics, which is measured and saved
    beside the weights. During a warm-up the decay is smaller. By default there is no average."""

    def __post_init__(self) -> None:
        """Refuse a shift above 0.5 or without --view shift, and label smoothing of 1 or more."""
        super().__post_init__()
        if self.shift is not None and (self.view != "shift" or self.shift > 0.5):
            raise UserError(
                f"shift: expected at most 0.5, with --view shift, found {self.shift} with {self.view}; "
                "change it"
            )
        if self.label_smoothing >= 1.0:
            raise UserError(f"label_smoothing: expected less than 1, found {self.label_smoothing}; lower it")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


from engine.objectives.supervised import mix, mixed_cross_entropy
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, warmup_cosine
from loaders import open_pack
from loaders.batch import Batch
from loaders.classification import LabeledLoaders
from loaders.views import presets
from loaders.views.policy import ViewPolicy


class Supervised(ClassifierRecipe):
    """A classifier trained by cross-entropy."""

    name = "supervised"
    parts = "rows"
    warms_up = True

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the network; call `seed_everything` first."""
        average: Literal["average"] | None = None if config.ema_decay is None else "average"
        super().__init__(config, classes, average=average, nesterov=config.nesterov)
        self.config = config

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Classify one view of each image; --mixing mixes it with the view of a neighbour in the batch."""
        assert batch.labels is not None
        config = self.config
        mixed = mix(batch.views[0], batch.labels, config.mixing, config.mixing_alpha, config.seed, step)
        (logits,) = self.classify(mixed.x)
        loss = mixed_cross_entropy(logits, mixed, config.label_smoothing, self.class_weights)
        return StepOutput(loss, {"top1": top1_of(logits, mixed.labels)})

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a linear warm-up followed by a cosine."""
        return warmup_cosine(total_steps, round(self.config.warmup_epochs * steps_per_epoch))

    def after_step(self, step: int) -> None:
        """Update the moving average of the weights, if there is one."""
        if self.config.ema_decay is not None:
            self.update_average(step, self.config.ema_decay)


def view_of(config: Config) -> ViewPolicy:
    """Return the training view that --view selects."""
    match config.view:
        case "shift":
            return presets.weak(
                config.resolution, config.flip_p, padding=0.125 if config.shift is None else config.shift
            )
        case "gentle":
            return presets.fixmatch_strong_gentle(config.resolution, config.flip_p)
        case "strong":
            return presets.fixmatch_strong(config.resolution, config.flip_p)
        case _:
            return presets.crop_flip(config.resolution, config.min_crop, config.flip_p)


def run(config: Config) -> RunSummary:
    """Train on a pack and write a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    loaders = LabeledLoaders(pack, config, (view_of(config),))
    return run_recipe(config, lambda: Supervised(config, pack.classes), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(Supervised.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
