"""Runs whose new classifier starts as the linear probe; see `engine.train.probe_start`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from engine.evaluate.feature_store import features_of
from engine.evaluate.representations import Features
from engine.train import autocast
from engine.train.classifier_config import ClassifierConfig
from engine.train.classifier_recipe import ClassifierRecipe, ReadFeatures
from engine.train.distributed import make_accelerator, rank, seed_everything, world_size
from engine.train.loop import train
from engine.train.loop_config import LoopConfig
from engine.train.probe_start import is_worth_it, rehearsal_part, watched
from engine.train.run_folder import opened_run
from loaders.batch import Batch, Loader
from loaders.classification import views_in_order
from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.epochs import EpochLoader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Pack
from loaders.packs.labels.validation import apart, are_true

REHEARSAL = "rehearsal"
"""Subfolder of a run without validation images that keeps its rehearsal."""


@dataclass(frozen=True)
class ProbeStart:
    """Starts a run with the linear probe as its classifier, and keeps the run from ending below the probe.

    Attributes:
        options: loader options of this rank.
        training: builds the training loader for given labels.
        make_recipe: builds the recipe; called just after seeding.
    """

    config: ClassifierConfig
    pack: Pack
    options: LoaderOptions
    training: Callable[[LabelTable], Loader[Batch]]
    make_recipe: Callable[[], ClassifierRecipe]

    def build(self, labels: LabelTable) -> ClassifierRecipe:
        """Build the recipe; when training begins, its classifier becomes the probe of the given labels."""
        seed_everything(self.config.seed)
        recipe = self.make_recipe()
        recipe.read_features = self.reader(labels)
        return recipe

    def in_order(self, labels: LabelTable) -> EpochLoader:
        """Build a loader of the images with given labels, in order and without augmentation."""
        images = self.pack.pool(self.pack.splits).labeled_by(labels)
        return views_in_order(images, (self.config.evaluation_view.policy(),), self.options, labels)

    def reader(self, labels: LabelTable) -> ReadFeatures:
        """Return a function that computes the features of the images with given labels."""
        images = self.pack.pool(self.pack.splits).labeled_by(labels)

        def read(network: nn.Module, folder: Path, device: torch.device) -> Features:
            known = images.labels(labels)
            return features_of(
                network, images, lambda _: self.in_order(labels), device, folder, folder.parent, known
            )

        return read

    def begin(
        self,
        labels: LabelTable,
        loop: LoopConfig,
        validated: bool,
        accelerator: Accelerator,
    ) -> tuple[ClassifierRecipe, LoopConfig]:
        """Build the recipe; without validation images, decide by a rehearsal whether to train it.

        Args:
            labels: labels to train on.
            loop: options of the loop; without validation images, the run folder is claimed here.
            validated: whether the run has validation images.
            accelerator: the run's Accelerator.

        Returns:
            The recipe and the options of the loop. Without validation images, `resume` is set, and
            `max_steps` is 0 if a rehearsal gained nothing or was not possible.
        """
        recipe = self.build(labels)
        if validated:
            return recipe, loop
        described = {**loop.config, autocast.KEY: accelerator.mixed_precision}
        described[autocast.VIEWS] = self.config.training_options().dtype
        runtime = autocast.CHOSEN.union(loop.runtime_fields)
        with opened_run(loop.out, recipe.name, described, runtime, loop.resume):
            try:
                worth_it = self._rehearse(labels, loop)
            except UserError:
                left = loop.out / REHEARSAL
                if rank() == 0 and not (left / "config.json").exists():  # so that `out` is freed
                    shutil.rmtree(left, ignore_errors=True)
                raise
        return recipe, replace(loop, resume=True, max_steps=loop.max_steps if worth_it else 0)

    def _rehearse(self, labels: LabelTable, loop: LoopConfig) -> bool:
        """Train on four fifths of the labels; return whether that beats the probe on the other fifth.

        If there are too few labels for this, return False.
        """
        part = rehearsal_part(np.where(are_true(labels), labels.label, -1), self.config.seed)
        if part is None:
            return False
        held = labels.of_rows(labels.row[part])
        rest = labels.of_rows(apart(self.pack, labels.row, held))
        if len(np.unique(rest.label)) < 2:  # `apart` also drops copies of held-out images
            return False
        tell(
            f"rehearsal: no validation images; {len(rest):,} labels to train on, {len(held):,} to measure on"
        )
        # The rehearsal has the run's precision but no trackers, since its figures are not the run's.
        accelerator = make_accelerator(self.config.precision, loop.out, device=self.config.device)
        recipe, loader, measured = self.build(rest), self.training(rest), self.in_order(held)
        recipe.weigh_classes(torch.bincount(torch.from_numpy(rest.label), minlength=rest.num_classes))
        loop = replace(loop, out=loop.out / REHEARSAL, resume=True, keep_checkpoints=1, max_steps=None)
        rows, micro = loader.batch_size // world_size(), loop.optimizing.micro_batch
        if micro is not None and rows % micro:  # fewer labels may mean smaller batches
            step = 1 if self.config.mixing == "none" else 2  # images are mixed in pairs
            sizes = range(min(micro, rows) // step * step, 1, -step)
            fitting = next((size for size in sizes if rows % size == 0), None)
            loop = replace(loop, optimizing=replace(loop.optimizing, micro_batch=fitting))
        try:
            done = train(recipe, loader, accelerator, loop, None, watched(measured))
        finally:
            loader.close()
            measured.close()
            accelerator.free_memory()
        assert done.validation is not None
        worth_it = is_worth_it(done.validation, len(held))
        said = "better than the probe; the training on all labels follows"
        kept = (
            "not better than the probe beyond chance; the probe stays (--validation-share sets images aside)"
        )
        tell(f"rehearsal: the trained classifier is {said if worth_it else kept}")
        return worth_it
