"""Warnings, before and after a run, about mistakes that raise no error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engine.evaluate.predict import Accuracy
from engine.train.metrics import read_metrics
from engine.train.recipe import Recipe
from loaders.common.notice import tell

_FEWEST_RECORDS = 8  # log records needed to compare the losses of the first and the last quarter
_MOVED = 0.005  # least relative change of the loss that counts as movement


def advise_before(config: Any, recipe: Recipe, steps_per_epoch: int | None = None) -> None:
    """Print warnings about settings that are probably mistakes.

    Args:
        steps_per_epoch: converts `config.steps` to epochs; if either is None, `config.epochs` counts.
    """
    warn(before(config, recipe, steps_per_epoch))


def warn(lines: Iterable[str | None]) -> None:
    """Print each line that is not None as a warning, unless this process has printed it before."""
    for line in lines:
        if line is not None:
            tell(f"warning: {line}")


def before(config: Any, recipe: Recipe, steps_per_epoch: int | None = None) -> Iterator[str]:
    """Yield the warnings that `advise_before` prints."""
    warmup, epochs = float(getattr(config, "warmup_epochs", 0.0)), float(config.epochs)
    if steps_per_epoch and getattr(config, "steps", None):
        epochs = config.steps / steps_per_epoch
    if warmup >= epochs and warmup > 0:
        yield (
            f"warmup_epochs: expected fewer than the {epochs:.3g} epochs of the run, found {warmup:g}; the "
            "learning rate never reaches its peak"
        )
    resolution = int(getattr(config, "resolution", 0))
    small = below_stride(getattr(recipe, "backbone", None), str(config.backbone), resolution)
    for line in (small, one_class(classes_of(recipe))):
        if line is not None:
            yield line


def below_stride(backbone: nn.Module | None, name: str, resolution: int) -> str | None:
    """Return a warning if a network shrinks its views to less than one pixel; else None."""
    stride = stride_of(backbone)
    if stride is None or not 0 < resolution < stride:
        return None
    return (
        f"resolution: expected at least {stride} pixels, the stride of {name}, found {resolution}; its last "
        "layers see one position"
    )


def one_class(classes: Sequence[str] | None) -> str | None:
    """Return a warning if there are fewer than two classes; else None."""
    if classes is None or len(classes) > 1:
        return None
    names = ", ".join(classes)
    return f"classes: expected two or more, found {len(classes)} ({names}); every prediction is right"


def stride_of(backbone: nn.Module | None) -> int | None:
    """Return the factor by which a network reduces an image's side; None if the network does not state it."""
    if isinstance(own := getattr(backbone, "reduction", None), int):
        return own
    info: Any = getattr(backbone, "feature_info", None)  # of timm's networks
    try:
        return int(info[-1]["reduction"])
    except (TypeError, KeyError, IndexError, ValueError):
        return None


def classes_of(recipe: Recipe) -> Sequence[str] | None:
    """Return the names of a recipe's classes; None if the recipe does not state them."""
    classes = getattr(getattr(recipe, "classifier", None), "classes", None)
    return classes if isinstance(classes, list | tuple) else None


def advise_after(out: Path, recipe: Recipe, accuracy: Accuracy | None) -> None:
    """Print a warning for each sign that a finished run has learned nothing.

    Args:
        accuracy: accuracy on the test split; None if it was not measured.
    """
    records = read_metrics(out / "metrics.jsonl")
    chance = at_chance(accuracy, classes_of(recipe))
    warn([chance, without_movement(records), no_better_than_start(records)])


def at_chance(accuracy: Accuracy | None, classes: Sequence[str] | None) -> str | None:
    """Return a warning if the 95 % interval of an accuracy does not lie above chance; else None."""
    if accuracy is None or classes is None or len(classes) < 2 or not accuracy.num_images:
        return None
    from scipy.stats import binomtest

    right, chance = round(accuracy.top1 * accuracy.num_images), 1 / len(classes)
    low = binomtest(right, accuracy.num_images).proportion_ci(0.95, method="wilson").low
    if low > chance:
        return None
    return (
        f"accuracy: {accuracy.top1:.1%} of {accuracy.num_images:,} test images is no better than guessing "
        f"among {len(classes)} classes ({chance:.1%}); check labels, learning rate and length"
    )


def no_better_than_start(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if training was never as accurate as its initial state; else None.

    An equal accuracy gives no warning: with few validation images, many states are equally accurate at any
    learning rate.
    """
    found = [(r["step"], float(r["validation_top1"])) for r in records if "validation_top1" in r]
    if len(found) < 2 or found[0][0] != 0:
        return None
    start, best = found[0][1], max(top1 for _, top1 in found[1:])
    if best >= start:
        return None
    return (
        f"training: the accuracy on the validation images was always lower than at the start ({start:.1%}, "
        f"later at most {best:.1%}); try a lower learning rate"
    )


def without_movement(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the loss ends where it began; None if it moved or has too few records."""
    losses = [float(r["loss"]) for r in records if isinstance(r.get("loss"), int | float)]
    if len(losses) < _FEWEST_RECORDS:
        return None
    part = len(losses) // 4
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    if abs(last - first) > _MOVED * abs(first):
        return None
    return (
        f"loss: {first:.4g} at the start and {last:.4g} at the end, so it did not change; raise --lr, or "
        "check what is trained"
    )
