"""Checkpoints: written atomically, checked before use, never unpickled.

A checkpoint is a folder `step-XXXXXXXX` with

    model.safetensors       parameters and buffers of the recipe
    optimizer.safetensors   tensors of the optimizer, "INDEX.NAME"
    optimizer.json          parameter groups and scalars of the optimizer
    rng.safetensors         states of the random generators of all ranks
    best.safetensors        parameters and buffers at the best validation, if the run keeps them
    meta.json               recipe, configuration, position, the SHA-256 of the other files and of itself

The folder is written under a temporary name, synced and renamed. So a folder with the final name is complete,
unless the disk damaged it later, which the hashes reveal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.nets.weights import write_tensors
from loaders.common.errors import UserError
from loaders.common.files import sha256_of, sync_file, to_json, write_synced
from loaders.common.json_text import parse_json

_BEST = "best.safetensors"
FORMAT = 3  # format 1 had no hash of meta.json itself, 2 did not record the run's data


@dataclass(frozen=True)
class CheckpointMeta:
    """The content of a checkpoint's meta.json.

    Attributes:
        recipe: name of the recipe.
        config: the recipe's configuration, as in the run folder.
        step: optimizer steps done.
        epoch: epoch of the next step.
        data: facts that determine the batches, from `engine.train.agreement.data_facts`.
        num_ranks: number of ranks whose random generators are saved.
        scaler: state of the gradient scaler; empty without float16.
        window: state of the unfinished log window, from `MetricWindow.state`; empty in older checkpoints.
        num_skipped: steps skipped so far.
        rules: rules of the recipe and of the validation, see `Recipe.rules`; empty in older checkpoints.
        backbone: metadata of the backbone besides its name, such as its evaluation view, as in the run's
            weights files; empty in older checkpoints.
        validation: state of the validation, from `Validator.described`; empty in runs without validation.
        files: name of each other file -> SHA-256.
        format: version of this layout.
    """

    recipe: str
    config: Mapping[str, Any]
    step: int
    epoch: int
    data: Mapping[str, str]
    num_ranks: int
    scaler: Mapping[str, Any] = field(default_factory=dict)
    window: Mapping[str, Any] = field(default_factory=dict)
    num_skipped: int = 0
    rules: Mapping[str, str] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def save_checkpoint(
    folder: Path,
    meta: CheckpointMeta,
    recipe: nn.Module,
    optimizer: Optimizer,
    rng: dict[str, Tensor],
    keep: int,
    best: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint and delete surplus ones; only rank 0 calls this.

    Args:
        folder: `checkpoints/` of the run.
        meta: the description, without `files`.
        recipe: the module, without the wrapper of DistributedDataParallel.
        optimizer: the optimizer, without accelerate's wrapper.
        rng: states of the generators, from `gather_rng_states`.
        keep: number of checkpoints to keep, at least 1: the new one and those of the steps before it.
        best: `state_dict` of the recipe at its best validation; None or empty if the run keeps none.

    Returns:
        The folder of the new checkpoint.

    Raises:
        UserError: the disk is full or cannot be written to; earlier checkpoints stay as they are.
    """
    try:
        return _save(folder, meta, recipe, optimizer, rng, keep, best or {})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint of step {meta.step} into {folder} ({error}); make room, then run "
            "the same command with --resume"
        ) from None


def _save(
    folder: Path,
    meta: CheckpointMeta,
    recipe: nn.Module,
    optimizer: Optimizer,
    rng: dict[str, Tensor],
    keep: int,
    best: Mapping[str, Tensor],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step-*"):
        shutil.rmtree(stale)
    final = folder / f"step-{meta.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    tensors, structure = _split_optimizer_state(optimizer)
    write_tensors(temporary / "model.safetensors", recipe.state_dict())
    write_tensors(temporary / "optimizer.safetensors", tensors)
    write_synced(temporary / "optimizer.json", to_json(structure))
    write_tensors(temporary / "rng.safetensors", rng)
    if best:
        write_tensors(temporary / _BEST, best)
    hashes = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
    said = parse_json(to_json({**asdict(meta), "files": hashes}))  # in JSON types, as a reader hashes it
    write_synced(temporary / "meta.json", to_json({**said, "sha256": _digest(said)}))
    sync_file(temporary)
    if final.exists():  # it is damaged: the run resumed from an earlier one and got here again
        shutil.rmtree(final)
    temporary.rename(final)
    sync_file(folder)
    # Newer checkpoints are damaged, since the run resumed from an older one. They are deleted too.
    sound = [path for path in list_checkpoints(folder) if path.name <= final.name]
    for old in set(list_checkpoints(folder)) - set(sound[-keep:]):
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first, without checking their content."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest undamaged checkpoint.

    Returns:
        The folder, or None if there is no checkpoint; and one line for each newer, damaged checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """
    damaged: list[str] = []
    for candidate in reversed(list_checkpoints(folder)):
        fault = find_damage(candidate)
        if fault is None:
            return candidate, damaged
        damaged.append(f"checkpoint {candidate.name} is damaged: {fault}")
    if damaged:
        raise UserError(
            f"resume: expected an intact checkpoint in {folder}, found {len(damaged)} damaged "
            f"({damaged[0]}); delete the run folder to start again"
        )
    return None, []


def find_damage(checkpoint: Path) -> str | None:
    """Return a description of the first damage in a checkpoint; None if all files are as written."""
    try:
        meta = read_meta(checkpoint)
    except (OSError, ValueError, TypeError) as error:
        return f"meta.json cannot be read ({error})"
    if not meta.files:
        return "meta.json lists no files"
    for name, expected in meta.files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256_of(file) != expected:
            return f"{name} differs from its SHA-256"
    return None


def read_meta(checkpoint: Path) -> CheckpointMeta:
    """Read the meta.json of a checkpoint.

    Raises:
        OSError, ValueError, TypeError: meta.json cannot be read, is damaged or of another format.
    """
    content = parse_json((checkpoint / "meta.json").read_bytes())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"expected format {FORMAT}, found {found}")
    if content.pop("sha256", None) != _digest(content):
        raise ValueError("it differs from its SHA-256")
    return CheckpointMeta(**content)


def _digest(said: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of meta.json, without the entry for this hash."""
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def load_weights(checkpoint: Path, recipe: nn.Module) -> None:
    """Copy the saved parameters and buffers into the recipe, which keeps its device and memory format.

    Raises:
        UserError: the checkpoint has tensors of other names or shapes.
    """
    saved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    present = recipe.state_dict()
    for name in sorted(saved.keys() | present.keys()):
        shapes = [str(list(side[name].shape)) if name in side else "none" for side in (present, saved)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"checkpoint {checkpoint}: expected tensor {name} of shape {shapes[0]}, found {shapes[1]}; "
                "the checkpoint is of another network: give its --backbone or another --out"
            )
    recipe.load_state_dict(saved)


def load_optimizer(checkpoint: Path, optimizer: Optimizer) -> None:
    """Restore the optimizer's state bit for bit, but keep `foreach` and `fused`, set for the present device.

    Raises:
        UserError: the checkpoint has parameter groups of other sizes.
    """
    tensors = safetensors.torch.load_file(checkpoint / "optimizer.safetensors")
    structure = parse_json((checkpoint / "optimizer.json").read_bytes())
    fresh = optimizer.state_dict()["param_groups"]
    sizes = [[len(group["params"]) for group in groups] for groups in (fresh, structure["param_groups"])]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"checkpoint {checkpoint}: expected parameter groups of sizes {sizes[0]}, found {sizes[1]}; "
            "the checkpoint is of another recipe or version; give another --out"
        )
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in structure["scalars"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = _like(parameters[int(index)], tensor)
    groups = [
        {key: tuple(value) if isinstance(new.get(key), tuple) else value for key, value in old.items()}
        | {key: new[key] for key in ("foreach", "fused") if key in new}
        for new, old in zip(fresh, structure["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_rng(checkpoint: Path) -> dict[str, Tensor]:
    """Read the states of the random generators of all ranks, as `gather_rng_states` returned them."""
    return safetensors.torch.load_file(checkpoint / "rng.safetensors")


def load_best(checkpoint: Path) -> dict[str, Tensor]:
    """Read the recipe's `state_dict` at its best validation, on the CPU; empty if the run keeps none."""
    file = checkpoint / _BEST
    return safetensors.torch.load_file(file) if file.is_file() else {}


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    """Give a saved tensor its parameter's strides, if the shapes agree: mixed layouts slow every step."""
    if saved.shape != parameter.shape:
        return saved
    return torch.empty_like(parameter, dtype=saved.dtype, device="cpu").copy_(saved)


def _split_optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"param_groups": state["param_groups"], "scalars": scalars}
