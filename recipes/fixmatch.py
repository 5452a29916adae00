r"""FixMatch: semi-supervised training on confident guesses for weakly augmented images.

Example, from scratch as in the paper:
    python recipes/fixmatch.py --pack packs/mine --labels-per-class 25 --out runs/fixmatch

Example, from a fine-tuned network as in the 2021 report, with balanced pseudo-labels beside the true ones
(`runs/finetuned` is a run of supervised.py, `runs/rounds` one of self_training.py):
    python recipes/fixmatch.py --pack packs/mine --init runs/finetuned --backbone resnet50 \
        --keep-head --resolution 96 --lr 0.01 --epochs 40 \
        --extra-labels runs/rounds/labels/round-4.parquet --out runs/fixmatch

Source: Sohn et al. 2020, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"
(arXiv 2001.07685); the report is Zhou, Wan, Li 2021, section 3.3.

The algorithm is in `FixMatch.training_step`, its loss in `engine.objectives.fixmatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.train.classifier_config import SemiConfig
from engine.train.run_config import is_usual
from loaders.common.checks import Count, Share
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(SemiConfig):
    """Train a classifier with FixMatch."""

    backbone: str = "wrn_28_2"
    """wrn_28_2, compact_cnn for a CPU, or any timm name. Paper: WRN-28-2; report: resnet50."""
    resolution: int = 32
    """Side length of the views in pixels. Paper: 32; report: 96."""
    epochs: int = 9400
    """Passes over the unlabelled images. Paper: 2^20 steps, which is 9,400 passes over 50,000 images;
    report: 40."""
    batch_size: int = 64
    """B, labelled images per step over all ranks. Paper: 64."""
    mu: Count = 7
    """Unlabelled images per labelled one. Paper: 7 (5 on ImageNet)."""
    threshold: Share = 0.95
    """Tau, lowest probability at which a guess counts. Paper: 0.95 (0.7 on ImageNet)."""
    adaptive_threshold: bool = False
    """Replace --threshold by the mean confidence of recent guesses, as it is before --align; without --align,
    it is lower for rarely guessed classes. FreeMatch (Wang et al. 2023), without its fairness loss."""
    align: bool = False
    """Divide the guessed probabilities by their recent mean, so that classes are guessed about equally often;
    for classes of similar size. ReMixMatch's distribution alignment (Berthelot et al. 2020)."""
    unlabeled_weight: float = 1.0
    """Lambda_u, weight of the loss on unlabelled images. Paper: 1 (10 on ImageNet)."""
    lr: float = 0.03
    """Peak learning rate; it falls as --cosine says. Paper: 0.03; report: 0.01."""
    weight_decay: float = 5e-4
    """Weight decay of the weights; biases and BatchNorm have none. Paper: 0.0005 (0.001 on CIFAR-100)."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the weights, which is measured and saved. During a warm-up the decay is
    smaller. Paper and report: 0.999, without the warm-up."""
    ema_statistics: Literal["average", "copy"] = "average"
    """BatchNorm's statistics in the average. average: averaged like the weights; copy: those of the trained
    network at a BatchNorm momentum of 0.001, as in the published codes, which train for a million steps."""
    strong: Literal["fixmatch", "gentle"] = "fixmatch"
    """Strong view. fixmatch: two operations of RandAugment with random magnitude, then Cutout, as in the
    paper; gentle: the same with smaller magnitudes, for images that the paper's view would destroy."""
    cutout: bool = True
    """Cut a square out of the strong view, as in the paper."""
    weak: Literal["flip_and_shift", "flip"] = "flip_and_shift"
    """Weak view. flip_and_shift: a flip, and a shift up to an eighth of the side (paper); flip: a flip."""
    cosine: Literal["partial", "full"] = "partial"
    """Decay of the learning rate. partial: 7/16 of a cosine's half-period (paper); full: all of it, to 0."""
    guesses: Literal["joined", "apart", "average"] = "joined"
    """Network that guesses labels on weak views. joined: the trained one, in one forward pass with all other
    views, as in the published codes; apart: the trained one, in a separate pass without gradient, which saves
    up to a third of a step; average: the averaged one, also in a separate pass."""
    labeled_among_unlabeled: bool = True
    """Use images with a label, true or from --extra-labels, as unlabelled images too, as in the paper.
    Report: pseudo-labelled images are left out."""

    def __post_init__(self) -> None:
        """Refuse --threshold where it has no effect, and --micro-batch where guesses need the whole batch."""
        super().__post_init__()
        if self.adaptive_threshold and not is_usual(self, "threshold"):
            raise UserError(
                f"threshold: expected none with --adaptive-threshold, which takes its place, found "
                f"{self.threshold}; leave out one"
            )
        if self.micro_batch is not None and (self.adaptive_threshold or self.align):
            raise UserError(
                "micro_batch: expected none with --adaptive-threshold and --align, which judge a guess by "
                f"all of a step, found {self.micro_batch}; leave out one"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import Tensor

from engine.objectives.fixmatch import RecentGuesses, fixmatch_loss
from engine.objectives.precision import at_least_float32
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.ema import warmed_up
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, partial_cosine, warmup_cosine
from loaders import open_pack
from loaders.batch import PairedBatch
from loaders.classification import SemiLoaders
from loaders.views import presets

RECENT = 0.99
"""Decay of the averages over recent guesses, after a warm-up. FreeMatch: 0.999, for a million steps."""


class FixMatch(ClassifierRecipe):
    """A classifier whose confident guesses on weak views are the labels of the strong views."""

    name = "fixmatch"
    parts = "rows"

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the networks; call `seed_everything` first."""
        super().__init__(config, classes, average=config.ema_statistics, nesterov=config.momentum > 0.0)
        self.config = config
        uses_recent = config.adaptive_threshold or config.align
        self.recent = RecentGuesses(len(classes)) if uses_recent else None

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Learn from labels, and on strong views from confident guesses for weak views (algorithm 1)."""
        weak, strong = batch.unlabeled.views
        (x,), labels = self.mixed(batch.labeled, step)
        if self.config.guesses == "joined":
            of_labeled, of_weak, of_strong = self.classify(x, weak, strong)
        else:
            of_weak = self.guess(weak)
            of_labeled, of_strong = self.classify(x, strong)
        of_weak, threshold = self.judged(of_weak.detach(), step)
        terms = fixmatch_loss(
            *(of_labeled, labels, of_weak, of_strong, threshold, self.config.unlabeled_weight),
            class_weights=self.class_weights,
        )
        metrics = {
            "top1": top1_of(of_labeled, labels),
            "supervised": terms.supervised.detach(),
            "unsupervised": terms.unsupervised.detach(),
            "mask_rate": terms.mask_rate,
        }
        if isinstance(threshold, Tensor):
            metrics["threshold"] = threshold.mean()
        return StepOutput(terms.loss, metrics)

    @torch.no_grad()
    def guess(self, weak: Tensor) -> Tensor:
        """Return logits [M, C], float32 or wider, of weak views [M, 3, H, W] from a separate forward pass."""
        if self.config.guesses == "apart":
            return self.classify(weak)[0]
        assert self.average is not None
        return at_least_float32(self.average(weak))

    def judged(self, of_weak: Tensor, step: int) -> tuple[Tensor, float | Tensor]:
        """Return the logits of the guesses [M, C], aligned if --align is set, and the threshold to apply."""
        config = self.config
        if self.recent is None:
            return of_weak, config.threshold
        self.recent.update(of_weak, warmed_up(step, RECENT))
        guesses = self.recent.aligned(of_weak) if config.align else of_weak
        if not config.adaptive_threshold:
            return guesses, config.threshold
        return guesses, self.recent.threshold(guesses, by_class=not config.align)

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return the paper's cosine, which stops at 7/16 of its half-period, or the whole half-period."""
        if self.config.cosine == "full":
            return warmup_cosine(total_steps, 0)
        return partial_cosine(total_steps, 7 / 16)

    def after_step(self, step: int) -> None:
        """Update the moving average of the weights."""
        self.update_average(step, self.config.ema_decay)


def run(config: Config) -> RunSummary:
    """Train on a pack and write a run folder."""
    pack = open_pack(config.pack, config.loader.store)
    config = config.on_pack(pack)
    strong = presets.fixmatch_strong if config.strong == "fixmatch" else presets.fixmatch_strong_gentle
    shift = 0.125 if config.weak == "flip_and_shift" else 0.0
    weak_view = presets.weak(config.resolution, config.flip_p, padding=shift)
    strong_view = strong(config.resolution, config.flip_p, cutout=config.cutout)
    views = ((weak_view,), (weak_view, strong_view))
    loaders = SemiLoaders(pack, config, *views, with_labeled=config.labeled_among_unlabeled)
    return run_recipe(config, lambda: FixMatch(config, pack.classes), loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(FixMatch.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
