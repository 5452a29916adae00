"""Checks before training: ranks must agree, and a resumed run needs the data and rules of its checkpoint."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from engine.train.distributed import rank, world_size
from loaders.batch import Loader
from loaders.common.errors import UserError
from loaders.common.files import to_json
from loaders.common.json_text import parse_json


def data_facts(loader: Loader[Any]) -> dict[str, str]:
    """Return the facts that determine a run's global batches on any number of ranks, as texts by name."""
    return {
        **loader.fingerprint,
        "steps per epoch": str(loader.steps_per_epoch),
        "global batch size": str(loader.batch_size),
    }


def check_same_data(checkpoint: Path, saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Compare the `data_facts` in a checkpoint with those of this run.

    Raises:
        UserError: a fact differs; the message names the first such fact and both values.
    """
    for name in dict.fromkeys((*saved, *present)):
        values = (saved.get(name, "nothing"), present.get(name, "nothing"))
        if values[0] != values[1]:
            raise UserError(
                f"checkpoint {checkpoint}: expected {name} {values[0]}, found {values[1]}; resume with the "
                "same pack, backend and options, or give another --out"
            )


def check_same_rules(checkpoint: Path, saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Compare the rules in a checkpoint with the rules of this run; see `Recipe.rules`.

    Raises:
        UserError: a rule differs; a run that changed its rules halfway would follow neither set.
    """
    for name in dict.fromkeys((*present, *saved)):
        if saved.get(name) != present.get(name):
            found = saved.get(name, "that of an earlier version")
            raise UserError(
                f"checkpoint {checkpoint}: expected the rule {present.get(name, 'none')!r} for {name}, found "
                f"{found!r}; finish the run with the version that started it, or give another --out"
            )


def run_facts(recipe: str, config: Mapping[str, Any], loader: Loader[Any]) -> dict[str, str]:
    """Return the facts that must be the same on every rank, as texts by name."""
    facts = {f"config {name}": json.dumps(value) for name, value in parse_json(to_json(dict(config))).items()}
    return {
        "recipe": recipe,
        **facts,
        **data_facts(loader),
        "torch version": str(torch.__version__),
        "numpy version": np.__version__,
        "python version": platform.python_version(),
    }


def check_agreement(facts: Mapping[str, str]) -> None:
    """Check that every rank has the same `run_facts`.

    Raises:
        UserError: on rank 0, if a fact differs; the message names the first such fact, its values and ranks.
        SystemExit: on the other ranks, if a fact differs, with the exit code of a user's mistake.
    """
    if world_size() == 1:
        return
    gathered: list[dict[str, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(gathered, dict(facts))  # unpickles only what this run's own processes sent
    for name in dict.fromkeys(name for each in gathered for name in each):
        values = [each.get(name, "nothing") for each in gathered]
        other = next((r for r, value in enumerate(values) if value != values[0]), None)
        if other is None:
            continue
        if rank() != 0:
            raise SystemExit(2)
        raise UserError(
            f"ranks: expected the same {name} on every rank, found {values[0]} on rank 0 and {values[other]} "
            f"on rank {other}; start all of them with the same command, pack and environment"
        )
