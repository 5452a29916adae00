"""Weights files of other projects: read without running code in them, and taken out of their wrappers.

A `.safetensors` file holds tensors alone. Every other file is a pickle of torch. With `weights_only=True`
torch builds only tensors and plain containers and refuses the rest. One more class is allowed: the authors of
DINO (main_dino.py) and MAE (util/misc.py, save_model) put the `argparse.Namespace` of their command beside
the weights; it holds values and runs nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from loaders.common.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "teacher")
_WRAPPERS = (*_AVERAGES, "state_dict", "model", "student", "module", "backbone", "encoder")
"""Keys under which checkpoints keep their weights, the better ones first: the authors of DINO, Mean Teacher
and timm evaluate averages of weights."""
_PREFIXES = (
    *("_orig_mod", "module", "model", "backbone", "encoder", "encoder_q", "base_encoder"),
    *("teacher", "student", "ema"),
)
"""Modules that wrap a network in checkpoints: torch.compile, DistributedDataParallel, Lightning, DINO's
MultiCropWrapper (utils.py), solo-learn and lightly (`backbone`, formerly `encoder`), MoCo (`encoder_q`) and
MoCo v3 (`base_encoder`, main_lincls.py). `momentum_encoder` is not among them, since its authors evaluate the
other encoder."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, out of their wrappers; names keep their prefixes.

    Raises:
        UserError: there is no such file; it is cut off, no checkpoint, holds pickled code, or has no tensors.
    """
    if not path.is_file():
        raise UserError(f"weights: expected a file at {path}, found none; give the path of one")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    tensors = _unwrapped(content)
    if not tensors:
        raise UserError(
            f"weights: expected a checkpoint, found {path} without tensors in it; give the file that holds "
            "the weights"
        )
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _no_checkpoint(path, error) from None
    return tensors


def _pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, and pickle, which names one of them, is imported nowhere
        code = _code_in(path)
        if code:
            raise UserError(
                f"weights: {path} holds pickled code ({', '.join(code[:3])}), which is not run; where you "
                "trust it, save its state dict alone as .safetensors and give that"
            ) from None
        raise _no_checkpoint(path, error) from None


def _code_in(path: Path) -> list[str]:
    """Name what a file would have to import; empty if it is no file of torch's."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return []
    return sorted(name for name in found if name != "argparse.Namespace")


def _no_checkpoint(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(
        f"weights: expected a whole checkpoint, found {path}, which is cut or none ({reason}); fetch it again"
    )


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Go into the wrappers of a checkpoint until the tensors are reached."""
    if not isinstance(content, Mapping):
        return {}
    for name in _WRAPPERS:
        inner = content.get(name)
        found = _unwrapped(inner) if isinstance(inner, Mapping) else {}
        if found:
            return found
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield all tensors, then those under every prefix that wraps a network, without the prefix.

    Averages come before the weights that they average: of two equal fits the first is taken.
    """
    prefixes = {""}
    for name in tensors:
        parts, depth = name.split("."), 0
        while depth < len(parts) - 1 and parts[depth] in _PREFIXES:
            depth += 1
            prefixes.add(".".join(parts[:depth]) + ".")
    for prefix in sorted(prefixes, key=lambda p: (not set(p.split(".")) & set(_AVERAGES), len(p), p)):
        yield {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
