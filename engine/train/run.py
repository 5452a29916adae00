"""The one way to run a recipe: seed, build, train, measure, close."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.evaluate.online_probe import OnlineProbe, probe_images
from engine.evaluate.predict import Accuracy
from engine.train.advice import advise_after, advise_before
from engine.train.bad_rows import describe_bad_rows
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.loop import TrainSummary, train
from engine.train.measured import Idle, TakingTurns
from engine.train.options import ValidationOptions
from engine.train.recipe import Recipe
from engine.train.run_config import RunConfig
from engine.train.validation import Validation
from loaders.batch import Batch, Loader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Split, open_pack
from loaders.packs.labels.validation import Division


class Loaders(Protocol):
    """Builds the loaders of a run for this rank."""

    @property
    def division(self) -> Division | None:
        """The labels to train on and to measure on while training; None without labels."""

    def training(self, options: LoaderOptions) -> Loader[Any]:
        """Build the loader of the recipe's batches."""

    def in_order(self, images: Split, options: LoaderOptions) -> Loader[Batch]:
        """Build the loader of images in order, without augmentation."""

    def testing(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Build the loader of the images on which the finished run is measured; None for none."""

    def validating(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Build the loader of the images to measure on while training; None for none."""


@dataclass(frozen=True)
class RunSummary(TrainSummary):
    """The results of a run.

    Attributes:
        accuracy: accuracy of the weights to use, on the test split; None if the recipe has no labels.
    """

    accuracy: Accuracy | None = None

    @property
    def out(self) -> Path:
        """Run folder."""
        return self.backbone.parent


def run(config: RunConfig, make_recipe: Callable[[], Recipe], loaders: Loaders) -> RunSummary:
    """Build a recipe and its loaders after seeding, train, measure, and close everything.

    Args:
        config: of the run.
        make_recipe: builds the recipe; the seed of its weights is set just before.
        loaders: of the run.

    Returns:
        The summary of the run, whose folder is `config.out`.

    Raises:
        UserError: the recipe has no probe, or the configuration has a mistake.
    """
    shared = config.account(loaders.division)
    accelerator = make_accelerator(config.precision, config.out, config.trackers)
    shared.say()
    seed_everything(config.seed)
    with ExitStack() as opened:
        opened.callback(accelerator.end_training)
        options = config.loader_options()

        def keep(loader: Loader[Any]) -> Loader[Any]:
            opened.callback(loader.close)
            return loader

        recipe = make_recipe() if config.measure != "loader" else Idle()
        loader = keep(loaders.training(options))
        if config.measure == "training":
            advise_before(config, recipe)
        if config.measure == "turns":
            loader = TakingTurns(loader, config.log_every)
        if loaders.division is not None:
            recipe.weigh_classes(count_labels(loaders.division.training))
        test_loader = loaders.testing(options) if config.measure == "training" else None
        if test_loader is not None:
            keep(test_loader)
        probe = None
        if config.probe_every_epochs:
            images = probe_images(open_pack(config.pack, config.loader.store), config.probe_splits)
            bank, query = (keep(loaders.in_order(part, options)) for part in images)
            probe = OnlineProbe(bank, query, config.probe_every_epochs)
        held = loaders.validating(options) if config.measure == "training" else None
        validation = None
        if held is not None and isinstance(config, ValidationOptions):
            validation = plan_validation(config, keep(held), loaders.division)
        loop_config = config.loop_config()
        loop_config = replace(loop_config, config=shared.describe(loop_config.config))
        summary = train(recipe, loader, accelerator, loop_config, probe, validation)
        accuracy = recipe.finish(config.out, test_loader, accelerator.device)
        if config.measure == "training":
            advise_after(config.out, recipe, accuracy)
    return RunSummary(**vars(summary), accuracy=accuracy)


def count_labels(labels: LabelTable) -> Tensor:
    """Return the number of labels of each class, int64 [C]."""
    return torch.from_numpy(np.bincount(labels.label, minlength=labels.num_classes))


def plan_validation(
    config: ValidationOptions, loader: Loader[Batch], division: Division | None
) -> Validation:
    """Return what to measure while training.

    Args:
        config: of the run.
        loader: of the validation images.
        division: of its labels.
    """
    return Validation(
        loader,
        config.validate_every,
        config.keep,
        config.patience,
        division.validation if division is not None and division.set_aside else None,
    )


def describe_training(summary: TrainSummary, out: Path) -> str:
    """Return in words the steps, metrics and speed of a training, or that it was over before."""
    done, bad_rows = f"{summary.step} of {summary.total_steps} steps", describe_bad_rows(out)
    if summary.img_per_s == 0.0:
        return f"{done}, taken before{bad_rows}"
    figures = {"loss": summary.loss, **summary.metrics}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    speed = f"{summary.img_per_s:,.0f} images/s, {summary.wait_share:.0%} waiting for data"
    return f"{done}, {shown}, {speed}{bad_rows}"


def print_summary(name: str, summary: RunSummary) -> None:
    """Print one line on a finished run and write its page, in the first process only."""
    from engine.report.run_page import leave_page  # loads matplotlib

    if os.environ.get("RANK", "0") != "0":
        return
    found, held = summary.accuracy, summary.validation
    best = (
        ""
        if held is None or held.best_step < 0
        else f"best validation {held.best_top1:.1%} at step {held.best_step}, "
    )
    shown = "" if found is None else f"top-1 {found.top1:.1%} of {found.num_images:,} test images, "
    print(f"{name}: {shown}{best}{describe_training(summary, summary.out)} -> {summary.out}")
    leave_page(summary.out)
