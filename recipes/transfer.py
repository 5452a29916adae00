r"""Transfer: fine-tune a pre-trained backbone on a few labels per class, beside the same from scratch.

    python recipes/transfer.py --pack packs/mine --init runs/barlow --labels-per-class 1 2 5 10 \
        --seeds 0 1 2 --out runs/transfer

Source: the semi-supervised protocol of Zbontar et al. 2021 (Barlow Twins), section 3.1: a new linear
classifier, separate learning rates for backbone and classifier, SGD without weight decay, cosine decay.

Both ways to start see the same labels; each has settings of its own (`--pretrained.*`, `--from-scratch.*`),
since what suits trained weights does not suit random ones.
"""

from __future__ import annotations

import engine  # noqa: F401 - first of all: it says how OpenMP waits, before torch reads that

# isort: split
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.distributed import Precision, make_accelerator, on_main, seed_everything
from engine.evaluate import extract_features, topk_accuracy
from engine.few_labels import SCRATCH, FewLabelResult, summarise, write_results
from engine.files import to_json
from engine.loop import LoopConfig, train
from engine.networks import build_backbone, load_backbone
from engine.recipe import Recipe, StepOutput
from engine.runs import read_run
from engine.schedule import Schedule, warmup_cosine
from loaders import build_loader, open_pack
from loaders.batch import Batch, Loader
from loaders.build import BackendName
from loaders.errors import UserError, run_command
from loaders.packs import Pack, Split
from loaders.packs.subsample import subsample_per_class
from loaders.views import presets


@dataclass(frozen=True)
class FineTuning:
    """How one way to start is trained."""

    lr_backbone: float
    """Peak learning rate of the backbone; 0 keeps its weights. Paper: 0.005 (1 % of ImageNet)."""
    lr_classifier: float
    """Peak learning rate of the linear classifier. Paper: 0.5, which overshoots on a handful of labels."""
    batchnorm: Literal["running", "batch"]
    """"running": normalise by the statistics that pre-training left, and keep them; "batch": by those of
    each batch, which the running ones follow."""
    steps: int = 200
    """Optimizer steps."""
    min_crop: float = 0.08
    """Smallest share of the image that a training view shows. Paper: 0.08; much more where there are only
    tens of labels, since a view that misses the object teaches a wrong label."""
    warmup_steps: int = 0
    """Linear rise of the learning rates."""
    weight_decay: float = 0.0
    """Of all weights. Paper: 0."""

    def __post_init__(self) -> None:
        """Refuse what makes no training."""
        if self.steps < 1 or self.warmup_steps < 0:
            raise UserError(
                "fine-tuning: expected steps >= 1 and warmup_steps >= 0, found "
                f"{self.steps} and {self.warmup_steps}"
            )
        if min(self.lr_backbone, self.lr_classifier, self.weight_decay) < 0:
            raise UserError("fine-tuning: expected learning rates and weight decay of at least 0")


@dataclass(frozen=True)
class Config:
    """Fine-tune on k labels per class, for several k and seeds, beside training from scratch."""

    pack: Path
    """Folder that tools/pack_dataset.py wrote."""
    init: Path
    """Run folder whose backbone to start from."""
    out: Path
    """Folder of the results; runs in it that are already complete are not repeated."""
    train_split: str = "train"
    """Labelled split to choose the labels from."""
    test_split: str = "test"
    """Labelled split to measure on."""
    labels_per_class: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of labels per class; the smaller choices are part of the larger."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the choice of labels, of new weights, of order and views."""
    beside_scratch: bool = True
    """Also train the same network from random weights on the same labels."""
    pretrained: FineTuning = FineTuning(lr_backbone=0.005, lr_classifier=0.02, batchnorm="batch", steps=100)
    """Training of the pre-trained network."""
    from_scratch: FineTuning = FineTuning(
        lr_backbone=0.1, lr_classifier=0.1, batchnorm="batch", warmup_steps=10
    )
    """Training of the network with random weights."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; 0 where left and right carry meaning. Paper: 0.5."""
    batch_size: int = 64
    """Images per step over all ranks; all labels at once where there are fewer."""
    precision: Precision = "auto"
    """Autocast: auto is bf16 on CUDA and none on the CPU."""
    backend: BackendName = "auto"
    """Loader backend."""
    num_threads: int = 2
    """Decoding threads of each rank."""


class Transfer(Recipe):
    """A backbone and a new linear classifier under one cross-entropy."""

    name = "transfer"

    def __init__(self, backbone: nn.Module, backbone_name: str, num_classes: int, tuning: FineTuning) -> None:
        """Put a classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: as `build_backbone` takes it.
            num_classes: C.
            tuning: rates, steps and BatchNorm mode.
        """
        super().__init__()
        self.tuning = tuning
        self.backbone = backbone
        self.backbone_name = backbone_name
        self.classifier = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        logits: Tensor = self.classifier(self.backbone(x))
        return logits

    def train(self, mode: bool = True) -> Transfer:
        """Set the mode; in "running" mode the backbone's BatchNorm stays in evaluation."""
        super().train(mode)
        if self.tuning.batchnorm == "running":
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Classify one view of each image."""
        assert batch.labels is not None
        logits = self(batch.views[0])
        loss = F.cross_entropy(logits.float(), batch.labels)
        top1 = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepOutput(loss, {"top1": top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with a learning rate for the backbone and one for the classifier."""
        tuning = self.tuning
        groups = [
            {"params": list(self.classifier.parameters()), "lr": tuning.lr_classifier},
            {"params": list(self.backbone.parameters()), "lr": tuning.lr_backbone},
        ]
        return torch.optim.SGD(
            groups, lr=tuning.lr_classifier, momentum=0.9, weight_decay=tuning.weight_decay
        )

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a cosine over the steps asked for; the last epoch may be cut short."""
        return warmup_cosine(self.tuning.steps, self.tuning.warmup_steps)


@dataclass(frozen=True)
class _Job:
    """One network to train and to test."""

    init: str
    tuning: FineTuning
    labels_per_class: int
    seed: int

    @property
    def folder(self) -> str:
        arm = SCRATCH if self.init == SCRATCH else "pretrained"
        return f"{arm}-{self.labels_per_class}-labels-seed-{self.seed}"


def fine_tune(
    config: Config, job: _Job, pack: Pack, test_loader: Loader[Batch], accelerator: Accelerator
) -> FewLabelResult:
    """Train one network on a few labels and test it.

    Args:
        config: of the command.
        job: what to start from, how to train, how many labels and which seed.
        pack: with the splits that `config` names.
        test_loader: the test split in evaluation mode, whole on every rank.
        accelerator: shared by all jobs.

    Returns:
        The accuracy; the run folder is `config.out` / `job.folder`.
    """
    labels = pack.split(config.train_split)
    chosen = labels.take(subsample_per_class(labels.labels(), job.labels_per_class, job.seed))
    described = read_run(config.init)["config"]
    backbone_name, resolution = str(described["backbone"]), int(described["resolution"])
    seed_everything(job.seed)
    backbone = (
        build_backbone(backbone_name, resolution) if job.init == SCRATCH else load_backbone(config.init)
    )
    recipe = Transfer(backbone, backbone_name, len(pack.classes), job.tuning)
    loader = _train_loader(config, job, chosen, resolution, accelerator)
    loop_config = LoopConfig(
        out=config.out / job.folder,
        epochs=-(-job.tuning.steps // loader.steps_per_epoch),
        max_steps=job.tuning.steps,
        seed=job.seed,
        resume=True,
        keep_checkpoints=1,
        progress=False,
        config=_description(config, job, resolution),
        backbone_metadata={"resolution": str(resolution)},
    )
    try:
        summary = train(recipe, loader, accelerator, loop_config)
    finally:
        loader.close()
        accelerator.free_memory()
    tested = extract_features(recipe, test_loader, accelerator.device).labelled()
    top1 = topk_accuracy(tested.h, tested.labels)
    return FewLabelResult(job.init, job.labels_per_class, job.seed, top1, len(tested.labels), summary.step)


def _train_loader(
    config: Config, job: _Job, chosen: Split, resolution: int, accelerator: Accelerator
) -> Loader[Batch]:
    num_ranks = accelerator.num_processes
    most = min(config.batch_size, len(chosen))
    if most < num_ranks:
        raise UserError(f"fine-tuning: {len(chosen)} labels for {num_ranks} processes; use fewer processes")
    return build_loader(
        chosen,
        views=(presets.crop_flip(resolution, job.tuning.min_crop, config.flip_p),),
        batch_size=most - most % num_ranks,
        seed=job.seed,
        backend=config.backend,
        device=str(accelerator.device),
        num_threads=config.num_threads,
        rank=accelerator.process_index,
        num_ranks=num_ranks,
        channels_last=True,
    )


def _description(config: Config, job: _Job, resolution: int) -> dict[str, Any]:
    fields = {
        "init": job.init,
        "labels_per_class": job.labels_per_class,
        "seed": job.seed,
        "resolution": resolution,
        "pack": config.pack,
        "train_split": config.train_split,
        "batch_size": config.batch_size,
        "flip_p": config.flip_p,
        **asdict(job.tuning),
    }
    plain: dict[str, Any] = json.loads(to_json(fields))
    return plain


def plan(config: Config) -> Iterator[_Job]:
    """Yield every network of the command, with all ways to start side by side."""
    for labels_per_class in config.labels_per_class:
        for seed in config.seeds:
            yield _Job(str(config.init), config.pretrained, labels_per_class, seed)
            if config.beside_scratch:
                yield _Job(SCRATCH, config.from_scratch, labels_per_class, seed)


def run(config: Config) -> list[FewLabelResult]:
    """Train and test every network of the command and write the results into `config.out`."""
    if not config.labels_per_class or not config.seeds:
        raise UserError("transfer: expected at least one number of labels and one seed, found none")
    pack = open_pack(config.pack)
    accelerator = make_accelerator(config.precision)
    resolution = int(read_run(config.init)["config"]["resolution"])
    test_loader = build_loader(
        pack.split(config.test_split),
        views=(presets.evaluation(resolution),),
        batch_size=256,
        mode="eval",
        backend=config.backend,
        device=str(accelerator.device),
        num_threads=config.num_threads,
        channels_last=True,
    )
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    results = []
    jobs = list(plan(config))
    try:
        for number, job in enumerate(jobs, start=1):
            result = fine_tune(config, job, pack, test_loader, accelerator)
            results.append(result)
            console.print(f"[{number}/{len(jobs)}] {job.folder}: top-1 {result.top1:.1%}", highlight=False)
    finally:
        test_loader.close()
    described: dict[str, Any] = json.loads(to_json(asdict(config)))
    on_main(lambda: write_results(config.out, results, described))
    return results


def print_results(console: Console, results: list[FewLabelResult]) -> None:
    """Print accuracies in per cent: a row per way to start, a column per number of labels."""
    summaries = summarise(results)
    counts = sorted({s.labels_per_class for s in summaries})
    table = Table("start", *(f"{k} per class" for k in counts), title="test accuracy, %")
    for init in dict.fromkeys(s.init for s in summaries):
        cells = {s.labels_per_class: s.text for s in summaries if s.init == init}
        table.add_row(init, *(cells.get(k, "") for k in counts))
    console.print(table)


def main() -> None:
    """Run the command line."""
    results = run(tyro.cli(Config, description=__doc__))
    print_results(Console(), results)


if __name__ == "__main__":
    run_command(main)
