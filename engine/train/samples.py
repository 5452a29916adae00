"""The first training views of a run, kept in its folder so that people can look at them later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json
from loaders.views.evaluation import Channels
from loaders.views.policy import IMAGENET

SAMPLES_NAME = "views.safetensors"


def save_samples(
    out: Path, batch: Batch | PairedBatch, num_images: int = 16, view: Mapping[str, Any] | None = None
) -> None:
    """Write the views of the first images of a batch, as the network sees them, unless they are features.

    Args:
        out: run folder.
        batch: batch of this rank; of a paired batch, the unlabelled images are taken.
        num_images: number of images to keep.
        view: fields of the run's `EvaluationView`, whose `mean` and `std` also normalised these views.
    """
    shown = batch.unlabeled if isinstance(batch, PairedBatch) else batch
    if shown.views[0].ndim != 4:  # stored features, not images
        return
    tensors = {f"view_{i}": view[:num_images].float() for i, view in enumerate(shown.views)}
    tensors["index"] = shown.index[:num_images]
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    facts = {name: json.dumps(list(view[name])) for name in ("mean", "std")} if view else None
    content = safetensors.torch.save(kept, facts)
    write_atomic(out / SAMPLES_NAME, content)


def normalization_of(out: Path) -> tuple[Channels, Channels]:
    """Return the mean and standard deviation by which the saved views were normalised, ImageNet's by default.

    Raises:
        UserError: the file is missing or damaged.
    """
    with _readable(out) as path, safe_open(path, "pt") as file:
        facts = file.metadata() or {}
        if not facts.keys() >= {"mean", "std"}:  # no view was given, or an older version wrote the file
            return IMAGENET.mean, IMAGENET.std
        return tuple(parse_json(facts["mean"])), tuple(parse_json(facts["std"]))


def load_samples(out: Path) -> tuple[tuple[Tensor, ...], Tensor]:
    """Read what `save_samples` wrote.

    Returns:
        Views, float32 [N, 3, H, W] each, normalised, and the rows of the pack they show, int64 [N].

    Raises:
        UserError: the file is missing or damaged.
    """
    with _readable(out) as path:
        tensors = safetensors.torch.load_file(path)
    index = tensors.pop("index", None)
    if index is None or not len(index) or not tensors:
        raise UserError(f"sample views: expected views and their rows in {path}, found none; remove it")
    return tuple(tensors[name] for name in sorted(tensors)), index


@contextmanager
def _readable(out: Path) -> Iterator[Path]:
    """Yield the path of the file of `save_samples`; an error in the block means that the file is damaged."""
    path = out / SAMPLES_NAME
    if not path.is_file():
        raise UserError(f"sample views: expected {path}, found none; train a run in {out} first")
    try:
        yield path
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"sample views: {path} cannot be read ({error}); remove it") from error
