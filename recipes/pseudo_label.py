r"""Pseudo-labels in three modes: made anew for each batch, kept for good, or in turns with true labels.

Example:
    python recipes/pseudo_label.py --pack packs/mine --mode local --labels-per-class 15 --out runs/pseudo

Sources: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks"; the modes, thresholds and constants are those of the INF473V report (Bonnet and Ahmad), sections 2
and 3.2.

* classical: each step guesses the labels of its unlabelled images and trains on the confident guesses at
  once, with a weight alpha(t) that grows (section 2.4).
* permanent: in each cycle every unlabelled image with a confident guess gets it as its label for good, and
  training goes on with all labels so far (section 2.5).
* local: train on true labels, label the unlabelled images with confident guesses, train on these labels, then
  on true labels again, and so on; the pseudo-labels of a cycle are dropped after it (section 2.6).

The algorithms are in `Classical.training_step`, `run_permanent` and `run_local`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.train.classifier_config import PhasesConfig
from loaders.common.checks import Count, PositiveShare, Share
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config(PhasesConfig):
    """Train a classifier with pseudo-labels."""

    mode: Literal["classical", "permanent", "local"] = "classical"
    """How pseudo-labels are made and kept, see above."""
    unlabeled_share: PositiveShare = 1.0
    """Fraction of the unlabelled images to use, drawn by --label-seed. INF473V report: some, to save time."""
    backbone: str = "resnet50"
    """Any timm name (resnet50 or a ViT in the report), wrn_28_2, or tiny_resnet for a CPU."""
    resolution: Count = 64
    """Side length of the views in pixels. Report: not stated."""
    epochs: Count = 4
    """classical: passes over the unlabelled images; permanent, local: passes over the labelled images in each
    training of a cycle. Report: 4."""
    cycles: Count = 4
    """permanent, local: number of cycles, each of which labels the unlabelled images once."""
    first_epochs: Count = 10
    """permanent, local: passes over the true labels before the first cycle."""
    batch_size: Count = 128
    """Labelled images per step over all ranks. Report: 128 (64 for ViT)."""
    mu: Count = 7
    """classical: unlabelled images per labelled one. Report: 7."""
    turns: bool = False
    """classical: take --mu steps on unlabelled batches and then one on a labelled batch, as the report does,
    instead of one step on labelled and unlabelled images together; each batch has --batch-size images."""
    threshold: Share = 0.95
    """Lowest probability at which a guess becomes a label. Report: 0, 0.9 or 0.95; 0.95 did best."""
    threshold_growth: float = 0.0
    """Increase of the threshold per epoch (classical) or per cycle. Report: 0.02, from 0.9."""
    threshold_limit: float = 0.99
    """Value at which a growing threshold stops. At 1, only probabilities that round to 1 would count."""
    unlabeled_weight: float = 1.0
    """classical: peak of alpha(t), the weight of the loss on pseudo-labels. Report: 1; Lee: 3."""
    ramp_start: float = 0.0
    """Epoch at which alpha(t) begins to grow. Lee: 100 of 600."""
    ramp_end: float = 0.0
    """Epoch at which alpha(t) reaches its peak. Lee: 600."""
    lr: float = 0.001
    """Constant learning rate. Report: 0.001."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        super().__post_init__()
        if self.mode == "classical" and self.stored_views:
            raise UserError(
                "stored_views: expected --mode permanent or local, found classical, which guesses anew in "
                "each step; leave out one of them"
            )
        if self.turns and self.mode != "classical":
            raise UserError(
                f"turns: expected --mode classical, the only one with steps in turns, found {self.mode}; "
                "leave out --turns"
            )
        if self.threshold_growth > 0.0 and self.threshold > self.threshold_limit:
            raise UserError(
                f"threshold: expected at most --threshold-limit, {self.threshold_limit}, found "
                f"{self.threshold}; change one of them"
            )
        if self.ramp_end < self.ramp_start:
            raise UserError(
                f"ramp_end: expected at least ramp_start, {self.ramp_start}, found {self.ramp_end}; raise it"
            )


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch

from engine.evaluate.predict import guess_labels
from engine.objectives.cross_entropy import label_loss
from engine.objectives.fixmatch import confident_guesses, fixmatch_loss, masked_cross_entropy
from engine.objectives.pseudo_label import growing_threshold, label_weight
from engine.train.classifier_recipe import ClassifierRecipe, top1_of
from engine.train.distributed import on_main
from engine.train.phases import Phases, PhaseSummary, print_phases
from engine.train.recipe import StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from engine.train.schedule import Schedule, constant
from loaders import open_pack
from loaders.batch import Batch, PairedBatch
from loaders.classification import SemiLoaders, divided_labels, views_of_labeled
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.subsample import read_label_table
from loaders.views import presets


class Classical(ClassifierRecipe):
    """A classifier that learns from labels and from its own confident guesses."""

    name = "pseudo_label"
    parts = "rows"

    def __init__(self, config: Config, classes: Sequence[str]) -> None:
        """Build the network; call `seed_everything` first."""
        super().__init__(config, classes)
        self.config = config
        self.steps_per_epoch = 1

    def training_step(self, batch: PairedBatch, step: int) -> StepOutput:
        """Learn from labels, and from confident guesses with the weight alpha(t)."""
        config, epoch = self.config, step / self.steps_per_epoch
        if config.turns and not len(batch.unlabeled.index):
            return self.labeled_turn(batch.labeled, step)
        threshold = growing_threshold(
            int(epoch), config.threshold, config.threshold_growth, config.threshold_limit
        )
        weight = label_weight(epoch, config.ramp_start, config.ramp_end, config.unlabeled_weight)
        if config.turns:
            return self.unlabeled_turn(batch.unlabeled, threshold, weight)
        (x,), labels = self.mixed(batch.labeled, step)
        of_labeled, guesses = self.classify(x, batch.unlabeled.views[0])
        # One view is both the weak and the strong one.
        terms = fixmatch_loss(of_labeled, labels, guesses, guesses, threshold, weight, self.class_weights)
        metrics = {
            "top1": top1_of(of_labeled, labels),
            "supervised": terms.supervised.detach(),
            "unsupervised": terms.unsupervised.detach(),
            "mask_rate": terms.mask_rate,
        }
        return StepOutput(terms.loss, metrics)

    def labeled_turn(self, batch: Batch, step: int) -> StepOutput:
        """Return the loss of a labelled batch, for --turns."""
        (x,), labels = self.mixed(batch, step)
        (logits,) = self.classify(x)
        loss = label_loss(logits, labels, self.class_weights)
        return StepOutput(loss, {"top1": top1_of(logits, labels), "supervised": loss.detach()})

    def unlabeled_turn(self, batch: Batch, threshold: float, weight: float) -> StepOutput:
        """Return the loss of the confident guesses on an unlabelled batch, for --turns."""
        (logits,) = self.classify(batch.views[0])
        guess, mask = confident_guesses(logits, threshold)
        loss = masked_cross_entropy(logits, guess, mask)
        rate = mask.to(torch.float32).mean()
        return StepOutput(weight * loss, {"unsupervised": loss.detach(), "mask_rate": rate})

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a constant learning rate, and store the number of steps per epoch."""
        self.steps_per_epoch = steps_per_epoch
        return constant()


def run_classical(config: Config, pack: Pack) -> RunSummary:
    """Train with pseudo-labels that are made anew for each batch."""
    view = (presets.weak(config.resolution, config.flip_p),)
    loaders = SemiLoaders(pack, config, view, view, share=config.unlabeled_share, turns=config.turns)
    return run_recipe(config, lambda: Classical(config, pack.classes), loaders)


class Labeller:
    """Trains on label tables, and labels the unlabelled images with the trained network, cycle by cycle."""

    def __init__(self, config: Config, pack: Pack, phases: Phases) -> None:
        """Open the loaders that all cycles share."""
        self.config, self.pack, self.phases = config, pack, phases
        self.test_loader = phases.test_images()
        self.pool_loader = phases.pool(config.evaluation_view, config.unlabeled_share)

    @property
    def fewest(self) -> int:
        """Smallest number of images to train on: BatchNorm needs two on every rank."""
        return 2 * int(self.phases.accelerator.num_processes)

    def train(self, name: str, labels: LabelTable, init: Path | None, keep_head: bool, epochs: int) -> Path:
        """Train on a label table, starting from `init`; return the run folder of this phase."""
        config = self.config
        views = views_of_labeled(config, (presets.weak(config.resolution, config.flip_p),))
        phase = self.phases.fine_tune(
            name, init, keep_head, epochs, labels, views, self.test_loader, cosine=False
        )
        return phase.out

    def label(self, run: Path, cycle: int) -> LabelTable:
        """Label the unlabelled images on which a run's classifier is confident, or read the table on disk."""
        config, phases = self.config, self.phases
        path = config.out / "labels" / f"cycle-{cycle}.parquet"
        if on_main(path.is_file):
            return read_label_table(self.pack, path)
        threshold = growing_threshold(
            cycle - 1, config.threshold, config.threshold_growth, config.threshold_limit
        )
        device, num_rows = phases.accelerator.device, len(self.pack)
        network = phases.network(run)
        found = guess_labels(network, self.pool_loader, device, num_rows, threshold, config.out)
        table = LabelTable.of(
            found.row, found.label, len(self.pack.classes), found.confidence, "pseudo", cycle
        )
        on_main(lambda: self.pack.signed(table).write(path))
        phases.say(f"cycle {cycle}: {len(table):,} images labelled at {threshold:.2f} or more")
        return table


def run_permanent(config: Config, true_labels: LabelTable, labeller: Labeller) -> None:
    """Train, label confident images for good, train on all labels so far, and so on (section 2.5)."""
    run = labeller.train("start", true_labels, config.init, config.keep_head, config.first_epochs)
    labels = true_labels
    for cycle in range(1, config.cycles + 1):
        labels = labels.join(labeller.label(run, cycle))
        run = labeller.train(f"cycle-{cycle}", labels, run, True, config.epochs)


def run_local(config: Config, true_labels: LabelTable, labeller: Labeller) -> None:
    """Train on true labels and on confident guesses in turns (section 2.6)."""
    run = labeller.train("start", true_labels, config.init, config.keep_head, config.first_epochs)
    for cycle in range(1, config.cycles + 1):
        pseudo = labeller.label(run, cycle)
        if len(pseudo) >= labeller.fewest:
            run = labeller.train(f"cycle-{cycle}-pseudo", pseudo, run, True, config.epochs)
        run = labeller.train(f"cycle-{cycle}-true", true_labels, run, True, config.epochs)


def run_cycles(config: Config, pack: Pack) -> list[PhaseSummary]:
    """Run the permanent or the local mode and write the last classifier into --out."""
    division = divided_labels(pack, config)
    algorithms: dict[str, Callable[[Config, LabelTable, Labeller], None]] = {
        "permanent": run_permanent,
        "local": run_local,
    }
    with Phases(Classical.name, config, pack, division, pack_fingerprint(pack)) as phases:
        algorithms[config.mode](config, division.training, Labeller(config, pack, phases))
        phases.finish()
        return phases.done


def main() -> None:
    """Parse the command line and run the command."""
    config = command_line(Config, __doc__)
    pack = open_pack(config.pack, config.loader.store)
    if config.mode == "classical":
        print_summary(Classical.name, run_classical(config, pack))
    else:
        print_phases(Classical.name, run_cycles(config, pack))


if __name__ == "__main__":
    run_command(main)
