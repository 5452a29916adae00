"""Short runs of every self-supervised recipe: the same configurations in one process and in several.

As a script, under a launcher: `short_runs.py PACK OUT` trains every recipe into OUT/<name>.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from engine.loop import TrainSummary

RESOLUTION = 16
SMALL: dict[str, dict[str, Any]] = {
    "rotnet": {"hidden": (16,), "flip_p": 0.0},
}
"""What each recipe's Config changes to be small; two epochs of two steps on 64 images."""


def run_short(name: str, pack: Path, out: Path, **changes: Any) -> TrainSummary:
    """Run a recipe for a few seconds; `changes` are fields of its Config."""
    recipe = import_module(f"recipes.{name}")
    shared = {
        "backbone": "tiny_resnet",
        "resolution": RESOLUTION,
        "epochs": 2,
        "batch_size": 32,
        "num_threads": 1,
        "log_every": 1,
        "trackers": (),
        "progress": False,
    }
    config = recipe.Config(pack=pack, out=out, **{**shared, **SMALL[name], **changes})
    summary: TrainSummary = recipe.run(config)
    return summary


def main() -> None:
    torch.set_num_threads(1)
    pack, out = map(Path, sys.argv[1:])
    for name in SMALL:
        run_short(name, pack, out / name)


if __name__ == "__main__":
    main()
