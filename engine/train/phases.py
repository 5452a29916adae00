"""Commands of several phases: trainings that build on each other, each in its own folder.

out/config.json             options of the command
out/<phase>/                one training, a run folder like any other
out/labels/<name>.parquet   label tables made on the way
out/classifier.safetensors  the resulting classifier

An interrupted command continues with --resume: finished phases and label tables are read from disk, and the
unfinished phase resumes exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import nn

from engine.evaluate.feature_store import FOLDER, FeatureStore, store_features
from engine.evaluate.predict import Accuracy, measure_accuracy
from engine.evaluate.stored_loader import StoredLoader
from engine.nets.classifier import Classifier, build_classifier, find_classifier, save_classifier
from engine.objectives.cross_entropy import label_loss
from engine.train import autocast
from engine.train.advice import advise_after, advise_before
from engine.train.bad_rows import describe_bad_rows
from engine.train.classifier_config import ClassifierConfig, PhasesConfig
from engine.train.classifier_recipe import (
    ACCURACY_NAME,
    ClassifierRecipe,
    read_accuracy,
    top1_of,
)
from engine.train.classifier_start import ProbeStart
from engine.train.distributed import make_accelerator, on_main, seed_everything
from engine.train.loop import train
from engine.train.recipe import StepOutput
from engine.train.run import LoaderT, count_labels, plan_validation
from engine.train.run_config import RUNTIME_FIELDS, described
from engine.train.run_folder import opened_run, say_next_of_run
from engine.train.schedule import Schedule, constant, warmup_cosine
from loaders.batch import Batch, Loader
from loaders.classification import (
    build_labeled_loader,
    testing_loader,
    unlabeled_images,
    validation_loader,
    views_in_order,
)
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.epochs import EpochLoader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.labels.validation import SET_ASIDE_PATH, Division
from loaders.views.evaluation import EvaluationView
from loaders.views.policy import ViewPolicy

Labels = LabelTable | tuple[LabelTable, ...]

_SEEDS_PER_PHASE = 1000  # so that every phase draws different orders, views and weights


class SupervisedPhase(ClassifierRecipe):
    """The recipe of a phase: cross-entropy on labelled images."""

    name = "fine_tuning"
    parts = "rows"

    def __init__(self, config: ClassifierConfig, classes: Sequence[str], cosine: bool) -> None:
        """Build the network; call `seed_everything` first.

        Args:
            config: options of the phase.
            classes: names of the classes.
            cosine: let the learning rate fall to 0 by a cosine; else it stays constant.
        """
        super().__init__(config, classes)
        self.cosine = cosine

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Return the cross-entropy of one view of each image."""
        (x,), labels = self.mixed(batch, step)
        (logits,) = self.classify(x)
        loss = label_loss(logits, labels, self.class_weights)
        return StepOutput(loss, {"top1": top1_of(logits, labels)})

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a cosine or a constant schedule."""
        return warmup_cosine(total_steps, 0) if self.cosine else constant()


@dataclass(frozen=True)
class PhaseSummary:
    """The result of a phase.

    Attributes:
        name: name of the phase.
        out: run folder of the phase.
        accuracy: accuracy on the test split; None if it was not measured.
    """

    name: str
    out: Path
    accuracy: Accuracy | None


class Phases:
    """A command of several phases: its folder, its Accelerator and its finished phases."""

    def __init__(self, recipe: str, config: PhasesConfig, pack: Pack, division: Division, data: str) -> None:
        """Claim the folder and join the process group.

        Args:
            recipe: name of the recipe.
            config: options of the command.
            pack: pack that holds the images.
            division: labels to train on and to validate on; all phases have the same validation images.
            data: facts that identify the pack. A resumed command must find the same facts, since its finished
                phases and label tables belong to that pack.

        Raises:
            UserError: an option does not suit several phases, no run can start from `init`, or the labels,
                the device or the folder cannot be used.
        """
        if config.measure != "training":
            raise UserError(
                f"measure: expected training for a command of several phases, found {config.measure}; "
                "measure recipes/supervised.py"
            )
        if config.max_steps is not None:
            raise UserError(
                f"max_steps: expected none for a command of several phases, found {config.max_steps}; "
                "stop it with Ctrl-C, then continue with --resume"
            )
        self._frozen: nn.Module | None = None
        if config.init is not None:  # so that an unusable --init fails now, not hours later
            start = build_classifier(
                config.backbone, config.evaluation_view, pack.classes, config.init, config.keep_head
            )
            self._frozen = start.backbone if config.freeze_backbone else None
        config = replace(config, loader=config.settled_loader())  # a new phase's folder records no backend
        self.config, self.pack, self.classes = config, pack, pack.classes
        self.shared = config.account(division)
        self.accelerator = make_accelerator(config.precision, config.out, config.trackers, config.device)
        self.shared.say()
        content = self.shared.describe({**described(config), "pack identity": data})
        content[autocast.KEY] = self.accelerator.mixed_precision
        stored = bool(config.stored_views)  # whose features are float32
        content[autocast.VIEWS] = "float32" if stored else config.training_options().dtype
        runtime = (*RUNTIME_FIELDS, *autocast.CHOSEN)
        self._opened = ExitStack()
        self._opened.enter_context(opened_run(config.out, recipe, content, runtime, config.resume))
        self.done: list[PhaseSummary] = []
        self.division = division
        held = division.validation
        if held is not None and division.set_aside:
            on_main(lambda: held.write(config.out / SET_ASIDE_PATH))
        if self._frozen is not None:
            self._frozen.to(self.accelerator.device)
        self._learnt: Split | None = None  # images that may have a label, true or guessed
        self._drawn: FeatureStore | None = None  # features of their training views
        found = validation_loader(pack, config, division, self.options)
        self._held = None if found is None else self.keep(self._measured(found))

    def __enter__(self) -> Phases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the loaders that the phases share, release the folder and leave the process group."""
        self._opened.__exit__(kind, error, trace)
        self.accelerator.end_training()

    def keep(self, loader: LoaderT) -> LoaderT:
        """Return the given loader, which is then closed when the command ends; None stays None."""
        if loader is not None:
            self._opened.callback(loader.close)
        return loader

    @property
    def options(self) -> LoaderOptions:
        """The loader options of the next phase."""
        seed = self.config.seed + _SEEDS_PER_PHASE * len(self.done)
        return replace(self.config.loader_options(), seed=seed)

    @property
    def say(self) -> Callable[[str], None]:
        """A function that prints a line on rank 0, or nothing if progress is off."""
        return self.accelerator.print if self.config.progress else lambda line: None

    def test_images(self) -> Loader[Batch] | None:
        """Open the loader of the test images, which all phases share; None if there are none."""
        loader = testing_loader(self.pack, self.config, self.options)
        return None if loader is None else self.keep(self._measured(loader))

    def pool(self, view: EvaluationView, share: float = 1.0) -> Loader[Batch]:
        """Open a loader of the images to label, without those set aside to measure on.

        Args:
            view: view of the images; if it is the run's own evaluation view and the backbone is frozen, the
                features of the images are stored.
            share: share of the images to use, chosen by `label_seed`.
        """
        config, division = self.config, self.division
        images = unlabeled_images(
            self.pack, config.unlabeled_splits, division, share=share, seed=config.label_seed
        )
        loader = views_in_order(images, (view.policy(),), self.options)
        known = np.union1d(images.rows(np.arange(len(images))), division.training.row)
        self._learnt = self.pack.pool(self.pack.splits).take(known)
        return self.keep(self._measured(loader) if view == config.evaluation_view else loader)

    def _measured(self, loader: EpochLoader) -> Loader[Batch]:
        """Return the loader itself or, if the backbone is frozen, a loader of the images' stored features."""
        if self._frozen is None:
            return loader
        return StoredLoader(loader, self._stored(loader), self.accelerator.device)

    def _stored(self, loader: EpochLoader, folder: str = FOLDER) -> FeatureStore:
        assert self._frozen is not None
        out, device = self.config.out, self.accelerator.device
        return store_features(self._frozen, loader, loader.images[0], device, out / folder, out)

    def _training(self, labels: Labels, views: tuple[ViewPolicy, ...]) -> Loader[Batch]:
        """Build a phase's training loader: of new views, or of the stored features of views drawn once."""
        config, options = self.config, self.options
        shared = (config.batch_size, options, config.balanced)
        if not config.stored_views:
            drawn = replace(options, dtype=config.training_options().dtype)
            return build_labeled_loader(self.pack, labels, views, config.batch_size, drawn, config.balanced)
        assert self._learnt is not None, "the pool is open"
        if self._drawn is None:
            whole = replace(options, seed=config.seed)
            with views_in_order(self._learnt, views * config.stored_views, whole) as loader:
                self._drawn = self._stored(loader, "drawn")  # apart from features of evaluation views
        rows = self._drawn.rows[self._drawn.present]
        tables = labels if isinstance(labels, tuple) else (labels,)
        readable = tuple(table.of_rows(rows) for table in tables)
        kept = readable if isinstance(labels, tuple) else readable[0]
        loader = build_labeled_loader(self.pack, kept, views, *shared)
        return StoredLoader(loader, self._drawn, self.accelerator.device)

    def fine_tune(
        self,
        name: str,
        init: Path | None,
        keep_head: bool,
        epochs: int,
        labels: Labels,
        views: tuple[ViewPolicy, ...],
        test_loader: Loader[Batch] | None,
        cosine: bool,
    ) -> PhaseSummary:
        """Train on labelled images; if the phase is finished already, read its result from disk.

        Args:
            name: name of the phase and of its folder.
            init: weights to start from, such as a run folder; None for random weights.
            keep_head: start with the classifier layer of `init` too.
            epochs: passes over the labelled images.
            labels: labels of the images; several tables if an image can have several labels.
            views: one policy, from which the training views are drawn.
            test_loader: from `test_images`.
            cosine: see `SupervisedPhase`.
        """
        out = self.config.out / name
        expected = "classifier.safetensors" if test_loader is None else ACCURACY_NAME
        if not on_main(lambda: (out / expected).is_file()):
            # Only the first training may start at the probe; later ones start as their method says.
            begins = name == "start" and init is not None and init == self.config.init and not keep_head
            config = replace(
                self.config,
                out=out,
                init=init,
                keep_head=keep_head,
                classifier_start=self.config.asked_start
                if begins and not self.config.stored_views
                else "random",
                epochs=epochs,
                seed=self.options.seed,
                freeze_backbone=self.config.freeze_backbone and init is not None,
                resume=True,
                keep_checkpoints=1,
            )
            self._train(config, cosine, labels, views, test_loader)
        summary = PhaseSummary(name, out, read_accuracy(out).get("raw"))
        self.done.append(summary)
        if summary.accuracy is not None:
            self.say(f"{name}: top-1 {summary.accuracy.top1:.1%}")
        return summary

    def _train(
        self,
        config: ClassifierConfig,
        cosine: bool,
        labels: Labels,
        views: tuple[ViewPolicy, ...],
        test_loader: Loader[Batch] | None,
    ) -> None:
        loop_config = config.loop_config()
        loop_config = replace(loop_config, config=self.shared.describe(loop_config.config))

        def make() -> SupervisedPhase:
            return SupervisedPhase(config, self.classes, cosine)

        def make_loader(labels: Labels) -> Loader[Batch]:
            return self._training(labels, views)

        loader = make_loader(labels)
        try:
            recipe: ClassifierRecipe
            if config.begins_at_probe:
                assert isinstance(labels, LabelTable)  # nothing is guessed before the first phase
                start = ProbeStart(config, self.pack, self.options, make_loader, make)
                begun = start.begin(labels, loop_config, self._held is not None, self.accelerator)
                recipe, loop_config = begun
            else:
                seed_everything(config.seed)
                recipe = make()
            tables = labels if isinstance(labels, tuple) else (labels,)
            recipe.weigh_classes(torch.stack([count_labels(table) for table in tables]).sum(0))
            advise_before(config, recipe)
            held = self._held
            validation = None if held is None else plan_validation(config, held, self.division)
            train(recipe, loader, self.accelerator, loop_config, validation=validation)
            advise_after(config.out, recipe, recipe.finish(config.out, test_loader, self.accelerator.device))
        finally:
            loader.close()
            self.accelerator.free_memory()

    def network(self, run: Path) -> Classifier:
        """Load the classifier of a run, which must know all classes, onto this process's device."""
        return find_classifier(run, self.classes, every_class=True).to(self.accelerator.device)

    def validate(self, run: Path) -> float:
        """Return the accuracy of a run's classifier on the validation images, which must exist."""
        assert self._held is not None
        device = self.accelerator.device
        network = self.network(run).at(self.config.resolution).to(device)
        return measure_accuracy(network, self._held, device, self.config.out).top1

    def finish(self, run: Path | None = None, test_loader: Loader[Batch] | None = None) -> PhaseSummary:
        """Write the classifier to use into the command's own folder.

        Args:
            run: run folder with the classifier: of a phase or of the start; the last phase by default.
            test_loader: test images for a start, whose accuracy no phase has measured.
        """
        last = next((phase for phase in self.done if phase.out == run), self.done[-1])
        if run is not None and last.out != run:
            last, device = PhaseSummary("start", run, None), self.accelerator.device
            if test_loader is not None:
                network = self.network(run).at(self.config.resolution).to(device)
                found = measure_accuracy(network, test_loader, device, self.config.out, self.classes)
                last = replace(last, accuracy=found)
        on_main(lambda: save_classifier(self.config.out, self.network(last.out).cpu(), "raw"))
        if last.accuracy is not None:
            content = to_json({"raw": asdict(last.accuracy)})
            on_main(lambda: write_atomic(self.config.out / ACCURACY_NAME, content))
        return replace(last, out=self.config.out)


def print_phases(name: str, phases: list[PhaseSummary]) -> None:
    """Print the accuracy of every phase and the command's folder, and write the page about the command."""
    from engine.report.run_page import leave_page  # loads matplotlib

    if os.environ.get("RANK", "0") != "0":
        return
    for phase in phases:
        if phase.accuracy is not None:
            print(f"  {phase.name}: top-1 {phase.accuracy.top1:.1%}")
    out = phases[-1].out.parent
    print(f"{name}: {len(phases)} phases{describe_bad_rows(out)} -> {out}")
    leave_page(out)
    say_next_of_run(out)
