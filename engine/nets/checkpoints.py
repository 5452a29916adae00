"""Checkpoints to start training from: their backbone and its description.

A checkpoint holds all networks of a recipe; see `engine.train.checkpoint`. If the run averages weights, the
averaged backbone is taken, as from a finished run.
"""

from __future__ import annotations

import functools
from pathlib import Path

import safetensors.torch
from torch import nn

from engine.nets.backbones import build_backbone
from engine.nets.description import Description, describe_content
from engine.train.checkpoint import find_damage, read_meta
from loaders.common.errors import UserError

_PREFIXES = ("average.backbone.", "classifier.backbone.", "backbone.")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint folder, such as a run's `checkpoints/step-XXXXXXXX`."""
    return (path / "meta.json").is_file()


def describe_checkpoint(path: Path) -> Description:
    """Return the description of a checkpoint's backbone.

    Raises:
        UserError: the checkpoint is damaged, or too old to describe its network.
    """
    return _describe(path, (path / "meta.json").stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # callers repeat their calls, and hashing every file takes seconds
def _describe(path: Path, stamp: int) -> Description:
    damage = find_damage(path)
    if damage is not None:
        raise UserError(f"checkpoint {path}: {damage}; start from another one")
    meta = read_meta(path)
    if meta.config.get("origin") is not None and "view" not in meta.backbone:
        raise UserError(
            f"checkpoint {path}: expected the view of the weights that its run began with, found none, since "
            "it was written before checkpoints kept it; finish the run and start from that"
        )
    known = {name: meta.config[name] for name in ("backbone", "resolution") if name in meta.config}
    return describe_content({**known, **meta.backbone}, path)


def load_checkpoint(path: Path, resolution: int | None = None) -> nn.Module:
    """Build the backbone of a checkpoint with its weights, on the CPU, in evaluation mode.

    Args:
        path: path of the checkpoint.
        resolution: side of the views in pixels; by default the one it was trained with.

    Raises:
        UserError: see `describe_checkpoint`; or the recipe has no backbone, or the backbone cannot take the
            resolution.
    """
    described = describe_checkpoint(path)
    saved = safetensors.torch.load_file(path / "model.safetensors")
    for prefix in _PREFIXES:
        weights = {name[len(prefix) :]: t for name, t in saved.items() if name.startswith(prefix)}
        if weights:
            side = resolution or described.view.resolution
            return build_backbone(described.backbone, side, weights).eval()
    raise UserError(
        f"checkpoint {path}: recipe {read_meta(path).recipe!r} keeps no backbone; give a finished run"
    )
