"""Matching the outputs of a classifier to the classes of a pack, by name and not by number."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine.train.distributed import rank
from loaders.common.errors import UserError

_NUM_SHOWN = 3


def match_classes(known: Sequence[str], wanted: Sequence[str], run: Path, remedy: str) -> list[int]:
    """Return, for each class of a pack, the number of the classifier's output; -1 for an unknown class.

    The pack may have fewer classes than the classifier, or more; a message on stderr then says so. But one of
    the two sets must contain the other: sets that merely overlap belong to different tasks.

    Args:
        known: classes of the classifier, in the order of its logits.
        wanted: classes of the pack.
        run: path of the classifier, for messages.
        remedy: end of the error message: what the user can do.

    Raises:
        UserError: each set has classes that the other lacks, or the pack has no classes.
    """
    number_of = {name: number for number, name in enumerate(known)}
    unknown = [name for name in wanted if name not in number_of]
    left_out = sorted(number_of.keys() - set(wanted), key=number_of.__getitem__)
    if left_out and (unknown or not wanted):
        others = f", with {some_names(unknown)}" if unknown else ""
        raise UserError(
            f"classes: expected the {len(known)} of {run}, found {len(wanted)} in the pack: without "
            f"{some_names(left_out)}{others}; {remedy}"
        )
    if unknown:
        _say(f"classes: the classifier of {run} does not know {some_names(unknown)} of the pack")
    if left_out:
        lacking = some_names(left_out)
        _say(f"classes: the pack lacks {lacking} of {run}; only classes of the pack are predicted")
    return [number_of.get(name, -1) for name in wanted]


def match_unnamed(num_classes: int, wanted: Sequence[str], run: Path, remedy: str) -> list[int]:
    """Match the outputs of a classifier without class names to the pack's classes by order, and say so.

    Only old files lack the names.

    Raises:
        UserError: the pack has another number of classes.
    """
    if num_classes != len(wanted):
        raise UserError(
            f"classes: expected {num_classes}, those of {run}, found {len(wanted)} in the pack; {remedy}"
        )
    _say(f"classes: {run} does not name its {num_classes} classes; they are taken in the order of the pack's")
    return list(range(num_classes))


@torch.no_grad()
def copy_outputs(source: nn.Linear, target: nn.Linear, numbers: Sequence[int]) -> None:
    """Copy outputs of one classifier layer into another; outputs with the number -1 stay unchanged.

    Args:
        source: layer to copy from.
        target: layer to change in place.
        numbers: for each output of the target, the number of the source's output, or -1.
    """
    places = [place for place, number in enumerate(numbers) if number >= 0]
    taken = [numbers[place] for place in places]
    target.weight[places], target.bias[places] = source.weight[taken], source.bias[taken]


def some_names(names: Sequence[str]) -> str:
    """Return a text with the first three names and the number of the others."""
    shown = ", ".join(repr(name) for name in names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr)
