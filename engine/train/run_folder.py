"""The run folder: the right to write into it, and the description of the run.

config.json            recipe, configuration, versions
lock                   held by the process that works in the folder
metrics.jsonl          one line per log step
checkpoints/           see engine.train.checkpoint
backbone.safetensors   the finished backbone alone, for transfer
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.nets.description import metadata_of
from engine.nets.weights import write_tensors
from engine.train.checkpoint import find_damage, list_checkpoints
from engine.train.distributed import on_main, rank
from loaders.common.errors import UserError
from loaders.common.files import leftovers, sync_file, to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.locks import locked
from loaders.common.next_step import say_next

LOCK_NAME = "lock"
_LATER = {"init_weights"}  # what the configuration of an older run lacks, which is gone on with all the same


@contextmanager
def opened_run(
    out: Path, recipe: str, config: Mapping[str, Any], runtime_fields: Collection[str], resume: bool
) -> Iterator[None]:
    """Claim a run folder, or check that it belongs to the same run, and keep other processes out of it.

    Called on every rank; rank 0 alone looks at the folder and holds its lock. If a `UserError` comes before
    any work, the folder is free again.

    Args:
        out: the folder; made when it does not exist.
        recipe: name of the recipe.
        config: the recipe's configuration in JSON types.
        runtime_fields: fields that change how a run is carried out but not its results; they may differ on
            resuming.
        resume: whether to go on with the run in the folder. A new or empty folder starts from step 0 either
            way, so that the same command can be queued again and again.

    Raises:
        UserError: the folder holds something and `resume` is off, it holds another run, or another process
            works in it.
    """
    with ExitStack() as held:
        on_main(lambda: _claim(held, out, recipe, config, runtime_fields, resume))
        try:
            yield
        except UserError:
            if rank() == 0:
                _give_back(out)
            raise


def _claim(
    held: ExitStack,
    out: Path,
    recipe: str,
    config: Mapping[str, Any],
    runtime_fields: Collection[str],
    resume: bool,
) -> None:
    described = parse_json(to_json({"recipe": recipe, "config": dict(config)}))
    if out.exists() and not out.is_dir():
        raise UserError(f"run folder: expected a folder at {out}, found a file; give another --out")
    if _is_used(out):  # so that no lock is put into a folder of something else
        _check_same_run(out, described, runtime_fields, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(
            locked(
                out / LOCK_NAME,
                f"run folder: expected no other process in {out}, found one at work; wait for it, end it, or "
                "give another --out",
            )
        )
    except OSError as error:
        raise UserError(
            f"run folder: {out} cannot be made or written ({error.strerror}); give another --out"
        ) from None
    if _is_used(out):
        _check_same_run(out, described, runtime_fields, resume)
        return
    for path in leftovers(out):
        path.unlink(missing_ok=True)
    described["versions"] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    write_atomic(out / "config.json", to_json(described))


def _give_back(out: Path) -> None:
    """Free a folder if a mistake came before any work, so that the corrected command can use it."""
    if {path.name for path in out.iterdir()} == {"config.json", LOCK_NAME}:
        (out / "config.json").unlink()  # the lock file stays for processes that have opened it meanwhile


def _is_used(out: Path) -> bool:
    return out.is_dir() and bool(set(out.iterdir()) - leftovers(out) - {out / LOCK_NAME})


def _check_same_run(
    out: Path, described: Mapping[str, Any], runtime_fields: Collection[str], resume: bool
) -> None:
    file = out / "config.json"
    if not file.is_file():
        raise UserError(
            f"run folder: expected an empty folder or a run at {out}, found neither; give another --out"
        )
    found = read_run(out)
    found_recipe, found_config = found["recipe"], found["config"]
    if found_recipe != described["recipe"]:
        raise UserError(
            f"run folder: expected a run of recipe {described['recipe']!r} in {out}, found one of "
            f"{found_recipe!r}; give another --out"
        )
    config = described["config"]
    for name in sorted((config.keys() | found_config.keys()) - (_LATER - found_config.keys())):
        if name in config.keys() - found_config.keys() - set(runtime_fields) and config[name] is not None:
            raise UserError(
                f"run folder: {out} holds a run from before there was {name}; end it with the version that "
                "began it, or give another --out"
            )
        if name not in runtime_fields and config.get(name) != found_config.get(name):
            raise UserError(
                f"run folder: {out} holds a run with {name} = {found_config.get(name)!r}, found {name} = "
                f"{config.get(name)!r} asked for; give another --out, or the same {name} with --resume"
            )
    if not resume:
        raise UserError(
            f"run folder: {out} already holds this run; add --resume to go on, or give another --out"
        )


def _damage(out: Path, error: Exception) -> str:
    """Return the error for an unreadable configuration; a whole checkpoint holds a copy of it."""
    saved = reversed(list_checkpoints(out / "checkpoints"))
    whole = next((checkpoint for checkpoint in saved if find_damage(checkpoint) is None), None)
    remedy = "restore it" if whole is None else f"copy {whole / 'meta.json'} there, which says the same"
    return (
        f"run folder: {out / 'config.json'} is not a run's configuration ({error}); {remedy}, to keep the "
        "run, or give another folder"
    )


def read_run(out: Path) -> dict[str, Any]:
    """Read the description of a run: the keys are `recipe`, `config` and `versions`.

    Raises:
        UserError: `out` is no run folder.
    """
    file = out / "config.json"
    try:
        found = parse_json(file.read_bytes())
        return {
            "recipe": str(found["recipe"]),
            "config": dict(found["config"]),
            "versions": dict(found.get("versions", {})),  # a checkpoint's meta.json in its place has none
        }
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"run folder: expected a run at {out}, found no {file.name}; train one first"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_damage(out, error)) from None


def save_backbone(out: Path, backbone: nn.Module, metadata: Mapping[str, Any]) -> Path:
    """Write the backbone's weights alone, with the metadata for `engine.nets.description`.

    Returns:
        `out`/backbone.safetensors, readable by `engine.nets.backbones.load_backbone`.
    """
    final = out / "backbone.safetensors"
    temporary = out / ".backbone.safetensors.tmp"
    write_tensors(temporary, backbone.state_dict(), metadata_of(metadata))
    temporary.replace(final)
    sync_file(out)
    return final


def say_next_of_run(out: Path) -> None:
    """Print the command to give after a training: predict by a classifier, or learn from a few labels.

    Args:
        out: run folder, or one of several trainings.
    """
    left = [*out.glob("classifier*.safetensors")] or [*out.glob("*/classifier*.safetensors")]
    if left:  # of several trainings the last one's
        run = max(left, key=lambda path: path.stat().st_mtime_ns).parent
        say_next("tools/predict.py", "--network", run, "--images", "FOLDER", "--out", "predictions")
        return
    if not (out / "config.json").is_file() or not any(out.rglob("backbone.safetensors")):
        return  # figures of networks that were not kept, or a run without its weights
    pack = read_run(out)["config"].get("pack", "PACK")
    begun = out.with_name(f"{out.name}-transfer")
    say_next("recipes/transfer.py", "--pack", pack, "--init", out, "--out", begun)
