r"""Transfer: compare a pre-trained backbone with training from scratch, at a few labels per class.

Example:
    python recipes/transfer.py --pack packs/mine --init runs/barlow --labels-per-class 1 2 5 10 \
        --seeds 0 1 2 --out runs/transfer

`--init` is a run of any recipe or another pre-trained network; `--method` decides how it is used:

* fine_tune: train backbone and classifier together, each at its own learning rate.
* frozen: train only a classifier on the features of `--layer`: a linear one, or one with `--hidden` layers.
* two_stage: train first the classifier alone, then both, the classifier at a smaller learning rate.
* knn: train nothing; the nearest labelled neighbours vote.

By default, a linear classifier on the pre-trained backbone starts as the linear probe of its features, and
training does not end below that probe. Linear classifiers on the last layer are saved in the run folders.
The network from scratch gets the same labels; the settings are `--pretrained.*` and `--from-scratch.*`.

Muaz and Kumar's classifier: --method two_stage --layer conv4 --layer-side 6 --hidden 4096 4096 --patience 5
--validation-share 0.2. The 2021 report's search over learning rates: --grid --validation-share 0.2.

Sources: the semi-supervised protocol of Zbontar et al. 2021 (Barlow Twins), section 3.1: a new linear
classifier, separate learning rates for backbone and classifier, SGD without weight decay, cosine decay;
Muaz and Kumar (conv4, three fully connected layers, early stopping, then everything at a small rate);
Zhou, Wan, Li 2021, section 4.3 (the search).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from engine.choices import ClassWeights, Device, Keep, Mixing, Precision
from engine.evaluate.grid import RATES, WEIGHT_DECAYS
from engine.train.run_config import DEFAULT_LOADER, LoaderField, PackConfig
from engine.train.tuning_config import FineTuning, Job, Method
from loaders.common.checks import Count, Positive, check_different, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.files import check_folder
from loaders.common.program import check_command_line, command_line
from loaders.views.policy import Augmentation

PRETRAINED = FineTuning(lr_backbone=0.005, lr_classifier=0.02, batchnorm="batch", classifier_start="probe")
FROM_SCRATCH = FineTuning(lr_backbone=0.1, lr_classifier=0.1, batchnorm="batch", passes=40, warmup_steps=10)


@dataclass(frozen=True)
class Config(PackConfig):
    """Train on k labels per class, for several k and seeds, and compare with training from scratch."""

    init: Path
    """Pre-trained run folder, checkpoint, timm:NAME, hf:REPO or weights file, see docs/pretrained.md."""
    out: Path
    """Folder for the results; runs that are already complete there are not repeated."""
    backbone: str | None = None
    """Architecture of --init, if it is a weights file that does not name its own."""
    resolution: Count | None = None
    """Side length of the views in pixels; by default that of --init."""
    train_split: str = "train"
    """Split to choose the labels from; if it is "" or has no labels, --extra-labels alone are used."""
    extra_labels: tuple[Path, ...] = ()
    """Further label tables to choose from. An image keeps its true label, else that of the first table."""
    test_split: str = "test"
    """Labelled split to measure on."""
    allow_leak: bool = False
    """Run even if labels of images to measure on, or of copies, are trained on; results list the leaks."""
    labels_per_class: tuple[Count, ...] = (1, 2, 5, 10)
    """Numbers of labels per class; with one seed, a larger choice contains the smaller ones."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one per run, of the choice of labels, of new weights, and of order and views."""
    beside_scratch: bool = True
    """Also train the same network from random weights on the same labels."""
    method: Method = "fine_tune"
    """How the pre-trained backbone is used, see above."""
    layer: str = ""
    """Module whose output to use, such as stages.2 of tiny_resnet; "": the last. Muaz and Kumar: conv4."""
    layer_side: Count = 1
    """Side length to which the feature map of --layer is pooled before flattening; AlexNet's own is 6."""
    hidden: tuple[int, ...] = ()
    """Sizes of the classifier's hidden layers (with BatchNorm); empty for none. RotNet: 4096 4096."""
    pretrained: FineTuning = PRETRAINED
    """Training of the pre-trained network."""
    from_scratch: FineTuning = FROM_SCRATCH
    """Training of the network with random weights."""
    head_steps: Count | None = None
    """two_stage: steps of the first stage; by default as many as in the second."""
    together_factor: float = 0.1
    """two_stage: the classifier's learning rate in stage 2 over that in stage 1. Muaz and Kumar: "small"."""
    validation_split: str = ""
    """Labelled split of validation images, for --keep best, --patience and --grid; "" for none."""
    validation_share: float = 0.0
    """Instead of --validation-split: fraction of each class's labels to set aside before any choice."""
    validate_every: Count | None = None
    """Steps between validations; by default a twentieth of the training, but at least 10."""
    keep: Keep | None = None
    """Weights to test: the last, or the best by validation accuracy. With validation images, the default is
    best if the classifier starts as the linear probe without --grid, else last; --patience: always best."""
    patience: int = 0
    """Stop after this many validations without improvement, and test the best weights; 0: never."""
    grid: bool = False
    """Search --pretrained's rates and weight decay on validation images (report: table 5); draw grid.png."""
    grid_rates: tuple[float, ...] = RATES
    """Learning rates of the grid: all pairs with a smaller one for the backbone, and the largest for both."""
    grid_weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    """Weight decays of the grid."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning. Paper: 0.5."""
    augment: tuple[Augmentation, ...] = ()
    """Further changes of the training views: rotation, translation, jitter, randaugment."""
    mixing: Mixing = "none"
    """Mix neighbouring images of a batch: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""
    mixing_alpha: Positive = 1.0
    """Alpha of the Beta distribution of the mixing shares. CutMix: 1; mixup on ImageNet: 0.2."""
    batch_size: Count = 64
    """Images per step over all ranks, or all labelled images if there are fewer."""
    balanced: bool = False
    """Draw every class equally often, even if some have fewer labels than others."""
    class_weights: ClassWeights = "none"
    """Weight of a label in the loss, instead of --balanced, see recipes/supervised.py."""
    precision: Precision = "auto"
    """Autocast: auto is bf16 if the GPU or the processor has it in hardware, see recipes/supervised.py."""
    device: Device = "auto"
    """Device of the networks: cpu, cuda, or auto, which takes the GPU if there is one, else the processor."""
    loader: LoaderField = DEFAULT_LOADER
    """Options of the data loaders."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        check_numbers(self)
        check_folder(self.out)
        check_different(self, "labels_per_class", "seeds")
        if self.batch_size == 1:
            raise UserError(
                "batch_size: expected 2 or more, since BatchNorm averages over them, found 1; raise it"
            )
        if self.balanced and self.class_weights != "none":
            raise UserError("class_weights: expected none with --balanced, found both; leave one out")
        if self.validation_split and (self.validation_share or self.validation_split == self.test_split):
            beside = "--validation-share" if self.validation_share else "--test-split, the same"
            raise UserError(f"validation_split: expected a split of its own, found it with {beside}")
        if (self.grid or self.patience or self.keep == "best") and not (
            self.validation_split or self.validation_share
        ):
            raise UserError(
                "validation: --grid, --patience and --keep best choose by images that are not the test's; "
                "expected --validation-split or --validation-share, found neither"
            )
        if self.grid and (self.method == "knn" or len(self.labels_per_class) != 1):
            raise UserError("grid: expected a method with learning rates and one number of labels per class")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console

from engine.evaluate.feature_store import FOLDER, features_of
from engine.evaluate.few_labels import SCRATCH, FewLabelResult, results_table, say_next_step, write_results
from engine.evaluate.grid import Cell, Setting, print_grid, settings, sum_up_all, write_grid
from engine.evaluate.predict import measure_accuracy
from engine.evaluate.representations import Features
from engine.labels.shared_images import Account, check_run
from engine.nets.description import describe_origin
from engine.nets.layers import Layer, LayerFeatures
from engine.nets.starts import Start, find_start, weights_digest
from engine.objectives.cross_entropy import class_weights
from engine.report.other_pages import build_page
from engine.report.run_page import PageOptions, leave_page
from engine.train.autocast import as_begun
from engine.train.bad_rows import describe_bad_rows
from engine.train.distributed import make_accelerator, on_main, rank, seed_everything
from engine.train.fine_tuning import Stage, Transfer, leave_classifier, rehearse, train_job, vote
from engine.train.loop_config import LoopConfig
from engine.train.probe_start import start_at_probe
from engine.train.progress import RowsProgress
from engine.train.run import count_labels
from engine.train.run_config import described, on_this_rank
from engine.train.validation import Validation
from loaders import build_loader, open_pack
from loaders.batch import Batch, Loader
from loaders.build import Sampler
from loaders.classification import check_measured, fit_to_ranks
from loaders.common.files import to_json
from loaders.common.json_text import parse_json
from loaders.common.tables import print_table
from loaders.epochs import EpochLoader
from loaders.options import LoaderOptions
from loaders.packs import LabelTable, Pack, Split
from loaders.packs.labels.leaks import check_leak
from loaders.packs.labels.subsample import subsample_per_class, tell_scarce, training_labels
from loaders.packs.labels.validation import hold_out
from loaders.views import presets

_DECISIVE = (
    *("pack", "train_split", "extra_labels", "batch_size", "flip_p", "balanced", "class_weights"),
    *("layer", "layer_side", "hidden", "head_steps", "together_factor"),
    *("validation_split", "validation_share", "validate_every", "keep", "patience"),
)
_VALIDATION_SEED = 0  # one seed for all jobs, so that every job is validated on the same images


class Session:
    """State shared by all networks of a command: the pack, the start, and the images to measure on."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        """Open the pack and the loaders of this rank's test and validation images."""
        self.config, self.accelerator = config, accelerator
        self.pack: Pack = open_pack(config.pack, config.loader.store)
        self.pack.require_one_label()
        self.start: Start = find_start(config.init, config.backbone).at(config.resolution)
        check_measured(self.pack, config.test_split)
        table = training_labels(self.pack, config.train_split, None, 0, config.extra_labels)
        split = self.pack.pool(self.pack.splits).labeled_by(table)
        self.split, self.table, self.known = split, table, split.labels(table)
        held: Split | None = self.pack.split(config.validation_split) if config.validation_split else None
        if config.validation_share:
            tell_scarce(self.known, 2, self.pack.classes)
            held, self.known = hold_out(split, self.known, config.validation_share, _VALIDATION_SEED)
        tell_scarce(self.known, max(config.labels_per_class), self.pack.classes)
        self.shared = self.account([config.test_split, *filter(None, [config.validation_split])])
        self.shared.say()
        own = table if config.validation_share else None
        self.validation: Loader[Batch] | None = None
        self.test = self.in_order(self.pack.split(config.test_split))
        try:
            self.validation = None if held is None else self.in_order(held, own)
        except BaseException:
            self.test.close()
            raise

    def account(self, measured: Sequence[str]) -> Account:
        """Find labels, trained on here or by the start, that belong to images of the splits to measure on."""
        allow, splits = self.config.allow_leak, [self.pack.split(name) for name in measured]
        leaks = [check_leak(self.pack, self.table.row, split, allow) for split in splits]
        behind = [check_run(self.config.init, split, allow) for split in splits]
        notes = tuple(note for found in behind for note in found.notes)
        return Account(tuple(chain(*leaks, *(found.leaks for found in behind))), notes)

    def close(self) -> None:
        """Close the loaders."""
        for loader in filter(None, (self.test, self.validation)):
            loader.close()

    @property
    def options(self) -> LoaderOptions:
        """Loader options of this rank."""
        return on_this_rank(self.config.loader)

    def starts_at_probe(self, job: Job) -> bool:
        """Whether the classifier of a job starts as the linear probe of its backbone's features."""
        return job.tuning.classifier_start == "probe" and not self.config.hidden

    def watched(self, job: Job) -> Validation | None:
        """Plan the validation; None without validation images, or if a grid keeps the last weights."""
        config, probed = self.config, self.starts_at_probe(job)
        usual: Keep = "best" if config.patience or (probed and not config.grid) else "last"
        keep = "best" if config.patience else config.keep or usual
        if self.validation is None or (config.grid and keep == "last"):
            return None
        return Validation(self.validation, config.validate_every, keep, config.patience, None, probed)

    def labels(self, job: Job) -> Split:
        """Choose the labelled images of a job."""
        return self.split.take(subsample_per_class(self.known, job.labels_per_class, job.seed))

    def in_order(self, split: Split, labels: LabelTable | None = None) -> EpochLoader:
        """Build a loader of this rank's part of a split, without augmentation; true labels by default."""
        views, size = (self.start.view.policy(),), 256 * self.accelerator.num_processes
        return build_loader(split, views, size, options=self.options, mode="eval", labels=labels)

    def features(self, network: LayerFeatures, split: Split, labels: LabelTable | None = None) -> Features:
        """Return the features of a split, computed once for all jobs and later commands."""
        out, device = self.config.out, self.accelerator.device
        return features_of(network, split, self.in_order, device, out / FOLDER, out, split.labels(labels))

    def augmented(self, job: Job, images: Split) -> Loader[Batch]:
        """Build the training loader of a job."""
        unit = self.accelerator.num_processes * (1 if self.config.mixing == "none" else 2)  # mixed pairs
        chosen, batch_size = fit_to_ranks(images, self.config.batch_size, unit)
        view = presets.crop_flip(self.start.resolution, job.tuning.min_crop, self.config.flip_p)
        views = self.start.view.fit((presets.augmented(view, self.config.augment),))
        fitting = batch_size - batch_size % unit
        options = replace(self.options, seed=job.seed)
        sampler: Sampler | None = "balanced" if self.config.balanced else None
        return build_loader(chosen, views, fitting, options=options, labels=self.table, sampler=sampler)

    def build(self, job: Job, images: Split) -> Transfer:
        """Build a job's network, ready to train on `images`, on this process's device."""
        config, start = self.config, self.start
        layer, num_classes = Layer(config.layer, config.layer_side), len(self.pack.classes)
        seed_everything(job.seed)
        backbone = start.build() if job.init == SCRATCH else start.load()
        parts = (num_classes, job.tuning, layer, config.hidden, start.resolution)
        recipe = Transfer(backbone, start.backbone, *parts).to(self.accelerator.device)
        recipe.mixing = (config.mixing, config.mixing_alpha, job.seed)
        if config.class_weights != "none":
            counts = count_labels(self.table.of_rows(images.rows(np.arange(len(images)))))
            recipe.class_weights = class_weights(counts, config.class_weights == "effective")
        recipe.probed = self.starts_at_probe(job)
        if recipe.probed:
            features = self.features(LayerFeatures(recipe.backbone, layer), images, self.table)
            assert isinstance(recipe.classifier, torch.nn.Linear)  # `starts_at_probe` excludes hidden layers
            start_at_probe(recipe.classifier, features)
        return recipe

    def plan(self, job: Job, steps_per_epoch: int, worth_it: Sequence[bool], ending: str = "") -> list[Stage]:
        """Return the training stages of a job; see `JobTrainer.plan`."""
        stages = job.stages(self.config.head_steps, self.config.together_factor)
        return [
            Stage(tuning, frozen, self.loop_config(job, tuning, ending + end, steps_per_epoch), worth)
            for (end, tuning, frozen), worth in zip(stages, worth_it, strict=True)
        ]

    def loop_config(self, job: Job, tuning: FineTuning, ending: str, steps_per_epoch: int) -> LoopConfig:
        """Return the options of the training loop for one stage of a job."""
        assert tuning.steps is not None
        return LoopConfig(
            out=self.config.out / (job.folder + ending), epochs=-(-tuning.steps // steps_per_epoch),
            steps=tuning.steps, seed=job.seed, resume=True, keep_checkpoints=1, progress=False,
            config=self.description(job, tuning), runtime_fields=("pack",),  # the path may change
            backbone_metadata={"view": asdict(self.start.view), **describe_origin(self.start.origin)},
        )  # fmt: skip

    def description(self, job: Job, tuning: FineTuning) -> dict[str, Any]:
        """Return the options that decide a run's result, to be kept in its run folder."""
        fields = {name: getattr(self.config, name) for name in _DECISIVE} | asdict(tuning)
        mixing = None if self.config.mixing == "none" else (self.config.mixing, self.config.mixing_alpha)
        fields |= {"augment": self.config.augment or None, "mixing": mixing}  # None: unset, as in older runs
        fields |= {name: getattr(job, name) for name in ("init", "method", "seed", "labels_per_class")}
        fields |= {"init_weights": None if job.init == SCRATCH else weights_digest(self.start.path)}
        fields |= {"backbone": self.start.backbone, "resolution": self.start.resolution}
        plain: dict[str, Any] = parse_json(to_json(fields))
        return plain


def fine_tune(session: Session, job: Job) -> FewLabelResult:
    """Train one network on a few labels and test it; its run folder is `config.out` / `job.folder`."""
    config, device, images = session.config, session.accelerator.device, session.labels(job)
    job = replace(job, tuning=job.tuning.with_steps(len(images) // min(len(images), config.batch_size)))
    probed = session.starts_at_probe(job)
    worth_it = [True] * job.num_stages
    if probed and session.validation is None:
        worth_it = rehearse(session, job, images, session.table)
    recipe = session.build(job, images)
    begun = measure_accuracy(recipe, session.test, device, config.out) if probed else None
    trained = train_job(session, job, recipe, images, session.watched(job), worth_it)
    steps = sum(stage.steps for stage in trained)
    tested = begun if begun and not steps else measure_accuracy(recipe, session.test, device, config.out)
    held = None
    if session.validation is not None:
        held = measure_accuracy(recipe, session.validation, device, config.out).top1
    left = leave_classifier(config.out / job.folder, recipe, session.start, session.pack.classes, tested)
    return FewLabelResult(
        *(job.init, job.labels_per_class, job.seed, tested.top1, tested.num_images, steps),
        *(tested.top5, job.method, held, begun.top1 if begun else None, job.folder if left else ""),
    )


def classify_by_neighbours(session: Session, job: Job) -> FewLabelResult:
    """Classify the test images by a vote of their labelled neighbours, without any training."""
    config, device, num_classes = session.config, session.accelerator.device, len(session.pack.classes)
    network = LayerFeatures(session.start.load(), Layer(config.layer, config.layer_side)).to(device)
    test = session.pack.split(config.test_split)
    bank, query = session.features(network, session.split, session.table), session.features(network, test)
    chosen = session.labels(job)
    bank = bank.taken(chosen.rows(np.arange(len(chosen))))
    found = vote(bank, query.labelled(), num_classes)
    measured = (found.top1, found.num_images, 0, found.top5, job.method)
    return FewLabelResult(job.init, job.labels_per_class, job.seed, *measured)


def plan(config: Config) -> Iterator[Job]:
    """Yield all jobs of the command, each pre-trained one before its counterpart from scratch, if any."""
    for labels_per_class in config.labels_per_class:
        for seed in config.seeds:
            yield Job(str(config.init), config.method, config.pretrained, labels_per_class, seed)
            if config.beside_scratch:
                yield Job(SCRATCH, "fine_tune", config.from_scratch, labels_per_class, seed)


def plan_setting(config: Config, setting: Setting) -> Iterator[Job]:
    """Return the jobs of one cell of the grid, one per seed."""
    tuning = replace(config.pretrained, **asdict(setting))
    few, group = config.labels_per_class[0], f"grid/{setting.folder}"
    return (Job(str(config.init), config.method, tuning, few, seed, group) for seed in config.seeds)


def run_jobs(session: Session, jobs: list[Job]) -> list[FewLabelResult]:
    """Train and test networks, and print a line for each."""
    shown = RowsProgress(len(jobs), session.accelerator.is_main_process)
    results = []
    for job in jobs:
        result = classify_by_neighbours(session, job) if job.method == "knn" else fine_tune(session, job)
        results.append(result)
        begun = "" if result.start_top1 is None else f", linear probe of its start {result.start_top1:.1%}"
        shown.add(f"{job.folder}: top-1 {result.top1:.1%}{begun}")
    return results


def opened(config: Config) -> closing[Session]:
    """Open the session of a command, with the precision of the runs already in --out, if any."""
    config = as_begun(config)
    return closing(Session(config, make_accelerator(config.precision, device=config.device)))


def run(config: Config) -> list[FewLabelResult]:
    """Train and test every network of the command and write the results into `config.out`."""
    with opened(config) as session:
        results = run_jobs(session, list(plan(config)))
    content = session.shared.describe(described(config))
    on_main(lambda: write_results(config.out, results, content))
    return results


def run_grid(config: Config) -> list[Cell]:
    """Try every setting of the grid and write the table and the heat map into `config.out`."""
    with opened(config) as session:
        wanted = settings(config.grid_rates, config.grid_weight_decays)
        results = run_jobs(session, [job for setting in wanted for job in plan_setting(config, setting)])
    cells = sum_up_all(wanted, results)
    content = session.shared.describe(described(config))
    on_main(lambda: write_grid(config.out, cells, content))
    return cells


def main() -> None:
    """Parse the command line and run the command; rank 0 prints."""
    config = command_line(Config, __doc__)
    if config.grid:
        cells = run_grid(config)
        on_main(lambda: print_grid(config.out, cells))
    else:
        results = run(config)
        on_main(lambda: print_table(Console(), results_table(results)))
    if rank() == 0:
        print(f"transfer: results{describe_bad_rows(config.out)} -> {config.out}")
        if not config.grid:
            leave_page(config.out, lambda: build_page(PageOptions(config.out)))
            say_next_step(config.out, results)


if __name__ == "__main__":
    run_command(main)
