"""The run folder: its main content, and the right to write into it.

config.json            recipe, configuration, versions
lock                   lock of the process that works in the folder
metrics.jsonl          one line per log step and per validation
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
from engine.train.distributed import on_main, rank
from engine.train.same_run import check_same_run
from engine.train.same_run import read_run as read_run
from loaders.common.errors import UserError
from loaders.common.files import leftovers, sync_file, to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.locks import locked
from loaders.common.next_step import say_next

LOCK_NAME = "lock"


@contextmanager
def opened_run(
    out: Path, recipe: str, config: Mapping[str, Any], runtime_fields: Collection[str], resume: bool
) -> Iterator[None]:
    """Claim a run folder, or check that it belongs to the same run, and keep other processes out of it.

    Every rank calls this; rank 0 alone looks at the folder and holds its lock. If a `UserError` ends the
    block before any work, the folder is free again.

    Args:
        out: the folder; made if it does not exist.
        recipe: name of the recipe.
        config: the recipe's configuration in JSON types.
        runtime_fields: fields that change how a run is carried out but not its results; they may differ when
            the run resumes.
        resume: whether to resume the run in the folder. In a new or empty folder a run starts from step 0
            either way, so that the same command can be queued again and again.

    Raises:
        UserError: the folder cannot be used, for example because it holds another run, or another process
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
    if _is_used(out):  # checked before locking too, so that a folder with other content gets no lock file
        check_same_run(out, described, runtime_fields, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(
            locked(
                out / LOCK_NAME,
                f"run folder: expected no other process in {out}, found one running; wait for it, end it, or "
                "give another --out",
            )
        )
    except OSError as error:
        raise UserError(
            f"run folder: {out} cannot be made or written ({error.strerror}); give another --out"
        ) from None
    if _is_used(out):
        check_same_run(out, described, runtime_fields, resume)
        return
    for path in leftovers(out):
        path.unlink(missing_ok=True)
    described["versions"] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    write_atomic(out / "config.json", to_json(described))


def _give_back(out: Path) -> None:
    """Free a folder in which no work was done, so that the corrected command can use it."""
    if {path.name for path in out.iterdir()} == {"config.json", LOCK_NAME}:
        (out / "config.json").unlink()  # the lock file stays for processes that have opened it meanwhile


def _is_used(out: Path) -> bool:
    return out.is_dir() and bool(set(out.iterdir()) - leftovers(out) - {out / LOCK_NAME})


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
    """Print the command to run after a training: prediction with its classifier, or transfer of its backbone.

    Args:
        out: run folder, or a folder with the run folders of several trainings.
    """
    left = [*out.glob("classifier*.safetensors")] or [*out.glob("*/classifier*.safetensors")]
    if left:  # of several trainings, the last one
        run = max(left, key=lambda path: path.stat().st_mtime_ns).parent
        say_next("tools/predict.py", "--network", run, "--images", "FOLDER", "--out", "predictions")
        return
    if not (out / "config.json").is_file() or not any(out.rglob("backbone.safetensors")):
        return  # the command kept no weights
    pack = read_run(out)["config"].get("pack", "PACK")
    begun = out.with_name(f"{out.name}-transfer")
    say_next("recipes/transfer.py", "--pack", pack, "--init", out, "--out", begun)
