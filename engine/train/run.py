"""The one way to run a recipe: build, train, measure, close."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.evaluate.online_probe import OnlineProbe, probe_images
from engine.evaluate.predict import Accuracy
from engine.train.advice import advise_after, advise_before
from engine.train.bad_rows import describe_bad_rows
from engine.train.classifier_config import ClassifierConfig
from engine.train.classifier_recipe import ClassifierRecipe
from engine.train.classifier_start import ProbeStart
from engine.train.distributed import make_accelerator, seed_everything
from engine.train.loop import LAST_FOLDER, TrainSummary, train
from engine.train.measured import Idle, TakingTurns
from engine.train.options import ValidationOptions
from engine.train.recipe import Recipe
from engine.train.run_config import RunConfig
from engine.train.run_folder import say_next_of_run
from engine.train.validation import Validation
from loaders.batch import Batch, Loader
from loaders.classification import LabeledLoaders
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Split, open_pack
from loaders.packs.labels.validation import Division

LoaderT = TypeVar("LoaderT", bound=Loader[Any] | None)


class Loaders(Protocol):
    """Builds the loaders of a run for this rank."""

    @property
    def division(self) -> Division | None:
        """The labels to train on and to validate on; None without labels."""

    def training(self, options: LoaderOptions) -> Loader[Any]:
        """Build the training loader."""

    def in_order(self, images: Split, options: LoaderOptions) -> Loader[Batch]:
        """Build a loader of the given images in order, without augmentation."""

    def testing(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Build the loader of the test images; None if there are none."""

    def validating(self, options: LoaderOptions) -> Loader[Batch] | None:
        """Build the loader of the validation images; None if there are none."""


@dataclass(frozen=True)
class RunSummary(TrainSummary):
    """The results of a run.

    Attributes:
        accuracy: accuracy of the weights to use, on the test split; None if it was not measured.
        pack: pack that was trained on.
    """

    accuracy: Accuracy | None = None
    pack: Path = Path()

    @property
    def out(self) -> Path:
        """Run folder."""
        return self.backbone.parent


def run(config: RunConfig, make_recipe: Callable[[], Recipe], loaders: Loaders) -> RunSummary:
    """Build the loaders and, after seeding, the recipe; train, measure, and close everything.

    Raises:
        UserError: the options do not fit the pack, the run folder or the hardware; see also `train`.
    """
    shared = config.account(loaders.division)
    accelerator = make_accelerator(config.precision, config.out, config.trackers, config.device)
    shared.say()
    with ExitStack() as opened:
        opened.callback(accelerator.end_training)
        options = config.loader_options()

        def keep(loader: LoaderT) -> LoaderT:
            if loader is not None:
                opened.callback(loader.close)
            return loader

        loader = keep(loaders.training(config.training_options()))
        held = keep(loaders.validating(options) if config.measure == "training" else None)
        loop_config = config.loop_config()
        loop_config = replace(loop_config, config=shared.describe(loop_config.config))
        start = probe_start(config, make_recipe, loaders, options)
        if start is not None and loaders.division is not None:
            recipe: Recipe
            begun = start.begin(loaders.division.training, loop_config, held is not None, accelerator)
            recipe, loop_config = begun
        else:
            seed_everything(config.seed)
            recipe = make_recipe() if config.measure != "loader" else Idle()
        if config.measure == "training":
            advise_before(config, recipe, loader.steps_per_epoch)
        if config.measure == "turns":
            loader = TakingTurns(loader, config.log_every)
        if loaders.division is not None:
            recipe.weigh_classes(count_labels(loaders.division.training))
        test_loader = keep(loaders.testing(options) if config.measure == "training" else None)
        probe = None
        if config.probe_every_epochs:
            images = probe_images(open_pack(config.pack, config.loader.store), config.probe_splits)
            bank, query = (keep(loaders.in_order(part, options)) for part in images)
            probe = OnlineProbe(bank, query, config.probe_every_epochs)
        validation = None
        if held is not None and isinstance(config, ValidationOptions):
            validation = plan_validation(config, held, loaders.division)
        summary = train(recipe, loader, accelerator, loop_config, probe, validation)
        accuracy = recipe.finish(config.out, test_loader, accelerator.device)
        if config.measure == "training":
            advise_after(config.out, recipe, accuracy)
    return RunSummary(**vars(summary), accuracy=accuracy, pack=config.pack)


def probe_start(
    config: RunConfig, make_recipe: Callable[[], Recipe], loaders: Loaders, options: LoaderOptions
) -> ProbeStart | None:
    """Return the `ProbeStart` of a run whose classifier starts as the linear probe; None for other runs."""
    begins = isinstance(config, ClassifierConfig) and config.begins_at_probe and config.measure == "training"
    if not begins or not isinstance(loaders, LabeledLoaders):
        return None
    assert isinstance(config, ClassifierConfig)

    def make() -> ClassifierRecipe:
        recipe = make_recipe()
        assert isinstance(recipe, ClassifierRecipe)
        return recipe

    def training(labels: LabelTable) -> Loader[Any]:
        return loaders.with_labels(labels).training(config.training_options())

    return ProbeStart(config, loaders.pack, options, training, make)


def count_labels(labels: LabelTable) -> Tensor:
    """Return the number of labels of each class, int64 [C]."""
    return torch.from_numpy(np.bincount(labels.label, minlength=labels.num_classes))


def plan_validation(
    config: ValidationOptions, loader: Loader[Batch], division: Division | None
) -> Validation:
    """Return the plan for validating with `loader` while training."""
    probed = isinstance(config, ClassifierConfig) and config.begins_at_probe
    return Validation(
        loader,
        config.validate_every,
        config.keep or ("best" if probed else "last"),
        config.patience,
        division.validation if division is not None and division.set_aside else None,
        probed,
    )


def describe_training(summary: TrainSummary, out: Path) -> str:
    """Return a phrase on the steps, metrics and speed of a training, or on why this process took no step."""
    done, bad_rows = f"{summary.step} of {summary.total_steps} steps", describe_bad_rows(out)
    if summary.step == 0:
        return f"no step of {summary.total_steps} is worth taking; the linear probe stays{bad_rows}"
    if summary.img_per_s == 0.0:
        return f"{done}, all taken by an earlier process{bad_rows}"
    figures = {"loss": summary.loss, **summary.metrics}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    speed = f"{summary.img_per_s:,.0f} images/s, {summary.wait_share:.0%} waiting for data"
    return f"{done}, {shown}, {speed}{bad_rows}"


def print_summary(name: str, summary: RunSummary) -> None:
    """Print one line about a finished run and write its page, in the first process only."""
    from engine.report.run_page import leave_page  # loads matplotlib

    if os.environ.get("RANK", "0") != "0":
        return
    found, held = summary.accuracy, summary.validation
    best = ""
    if held is not None and held.best_step >= 0:
        used = "its weights are used" if (summary.out / LAST_FOLDER).is_dir() else "the last weights are used"
        best = f"best validation {held.best_top1:.1%} at step {held.best_step} ({used}), "
    images = f"{found.num_images:,} test images of {summary.pack}" if found is not None else ""
    shown = "" if found is None else f"top-1 {found.top1:.1%} of {images}, "
    print(f"{name}: {shown}{best}{describe_training(summary, summary.out)} -> {summary.out}")
    leave_page(summary.out)
    say_next_of_run(summary.out)
