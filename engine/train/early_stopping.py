"""Training that ends when the validation accuracy no longer rises, and keeps the weights at its best.

The loop knows nothing of it: training goes from one measurement to the next, each stretch being an exact
resume of the one before, so that an interrupted run ends with the bytes of a whole one.

validation.jsonl    one line per measurement
best.safetensors    weights of the recipe at the best one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from accelerate import Accelerator

from engine.evaluate.predict import measure_accuracy
from engine.train.distributed import on_main
from engine.train.loop import LoopConfig, train
from engine.train.metrics import MetricsWriter, read_metrics
from engine.train.recipe import Recipe
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError
from loaders.common.files import write_atomic

VALIDATION_NAME, BEST_NAME = "validation.jsonl", "best.safetensors"


@dataclass(frozen=True)
class Stopping:
    """When to stop.

    Attributes:
        every_steps: optimizer steps between measurements.
        patience: measurements without a rise after which training ends.
    """

    every_steps: int
    patience: int


@dataclass(frozen=True)
class Best:
    """The measurement whose weights were kept.

    Attributes:
        step: optimizer steps done at it.
        top1: validation accuracy in [0, 1].
        last_step: steps done when training ended.
    """

    step: int
    top1: float
    last_step: int


def train_until_worse(
    recipe: Recipe,
    loader: Loader[Batch],
    validation: Loader[Batch],
    accelerator: Accelerator,
    config: LoopConfig,
    stopping: Stopping,
) -> Best:
    """Train until the steps are done or the validation accuracy has not risen for a while.

    Args:
        recipe: freshly built; maps views to logits; ends with the best weights.
        loader: of the training.
        validation: this rank's part of the validation images, in evaluation mode.
        accelerator: of the process.
        config: of the loop; `max_steps` is the most that is done.
        stopping: when to measure and when to stop.

    Returns:
        What was kept. Of equal accuracies the first counts.
    """
    total = config.max_steps or config.epochs * loader.steps_per_epoch
    every = stopping.every_steps
    points = [*range(every, total, every), total]
    path = config.out / VALIDATION_NAME
    done = on_main(lambda: _read_done(path, points))
    while len(done) < len(points) and not _is_over(done, stopping.patience):
        step = points[len(done)]
        train(recipe, loader, accelerator, replace(config, max_steps=step, resume=True))
        accelerator.free_memory()
        top1 = measure_accuracy(recipe, validation, accelerator.device, config.out).top1
        best_so_far = max((value for _, value in done), default=-1.0)
        on_main(lambda: _keep(config.out, recipe, step, top1, rises=top1 > best_so_far))  # noqa: B023
        done.append((step, top1))
    recipe.load_state_dict(safetensors.torch.load_file(config.out / BEST_NAME))
    recipe.to(accelerator.device)
    step, top1 = max(done, key=lambda entry: (entry[1], -entry[0]))
    return Best(step, top1, done[-1][0])


def _read_done(path: Path, points: Sequence[int]) -> list[tuple[int, float]]:
    """Read the measurements so far; each decides where training goes on, so none may be missing between."""
    done = [(int(record["step"]), float(record["top1"])) for record in read_metrics(path)]
    steps, expected = [step for step, _ in done], list(points[: len(done)])
    if steps != expected:
        raise UserError(
            f"{path}: expected measurements at steps {expected}, found {steps}; the file is damaged, delete "
            "the run folder to start again"
        )
    return done


def _is_over(done: Sequence[tuple[int, float]], patience: int) -> bool:
    values = [top1 for _, top1 in done]
    return bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def _keep(out: Path, recipe: Recipe, step: int, top1: float, rises: bool) -> None:
    """Write the weights before the line that says they are there."""
    if rises:
        tensors = {name: t.detach().cpu().contiguous() for name, t in recipe.state_dict().items()}
        write_atomic(out / BEST_NAME, safetensors.torch.save(tensors))
    writer = MetricsWriter(out / VALIDATION_NAME, step - 1)
    writer.write({"step": step, "top1": top1})
    writer.close()
