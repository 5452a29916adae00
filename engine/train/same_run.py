"""Checks whether a folder holds the requested run. Importing this module loads no heavy library."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.files import to_json
from loaders.common.json_text import parse_json

_LATER = {"init_weights"}  # fields that an older run's config.json may lack when the run is resumed


def check_given(config: Any, runtime_fields: Collection[str]) -> None:
    """Refuse to resume a run of another recipe, or one whose options differ from those given.

    Options left at their defaults are not compared here but when training begins, since the run may have
    replaced a default by what it found in its pack.

    Args:
        config: configuration of a recipe, whose `out` holds the run. The file of its class has the
            name of the recipe.
        runtime_fields: fields that may differ.

    Raises:
        UserError: see `check_same_run`.
    """
    found, recipe = read_run(config.out)["config"], Path(sys.modules[type(config).__module__].__file__ or "")
    given = {
        name: value
        for name, value in asdict(config).items()
        if name in found and name not in runtime_fields and value != getattr(type(config), name, None)
    }
    described = {"recipe": recipe.stem, "config": {**found, **parse_json(to_json(given))}}
    check_same_run(config.out, described, runtime_fields, resume=True)


def check_same_run(
    out: Path, described: Mapping[str, Any], runtime_fields: Collection[str], resume: bool
) -> None:
    """Refuse a folder that holds something other than the requested run.

    Raises:
        UserError: the folder holds no readable run, another run, or this run although `resume` is off.
    """
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
                f"run folder: {out} holds a run of a version without {name}; finish it with that version, or "
                "give another --out"
            )
        if name not in runtime_fields and config.get(name) != found_config.get(name):
            raise UserError(
                f"run folder: {out} holds a run with {name} = {found_config.get(name)!r}, but {name} = "
                f"{config.get(name)!r} was requested; give another --out, or the same {name} with --resume"
            )
    if not resume:
        raise UserError(
            f"run folder: {out} already holds this run; add --resume to continue, or give another --out"
        )


def _damage(out: Path, error: Exception) -> str:
    """Return the message for an unreadable config.json, of which every undamaged checkpoint has a copy."""
    from engine.train.checkpoint import find_damage, list_checkpoints  # loads torch

    saved = reversed(list_checkpoints(out / "checkpoints"))
    whole = next((checkpoint for checkpoint in saved if find_damage(checkpoint) is None), None)
    remedy = "restore it" if whole is None else f"copy {whole / 'meta.json'} there, which holds the same"
    return (
        f"run folder: {out / 'config.json'} is not a run's configuration ({error}); to keep the "
        f"run, {remedy}; otherwise give another folder"
    )


def read_run(out: Path) -> dict[str, Any]:
    """Read the description of a run: the keys are `recipe`, `config` and `versions`.

    Raises:
        UserError: `out` is no run folder, or its config.json is damaged.
    """
    file = out / "config.json"
    try:
        found = parse_json(file.read_bytes())
        return {
            "recipe": str(found["recipe"]),
            "config": dict(found["config"]),
            # none if config.json was restored from a checkpoint's meta.json, see `_damage`
            "versions": dict(found.get("versions", {})),
        }
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"run folder: expected a run at {out}, found no {file.name}; train one first"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_damage(out, error)) from None
