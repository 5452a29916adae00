"""Options that no run can mean end in one sentence, whatever the recipe, and never in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.distributed import make_accelerator
from engine.run_config import Loading
from loaders.errors import UserError
from recipes import active, barlow, fixmatch, jigsaw, pipeline, siamese_vae, supervised, transfer, vae
from recipes import evaluate as measured
from tools import bench_guarantees

PATHS = {"pack": Path("pack"), "out": Path("out")}
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (barlow, {"seed": -1}, "seed: expected a whole number below 2\\*\\*62, at least 0, found -1"),
    (barlow, {"seed": 2**70}, "seed: expected a whole number"),
    (barlow, {"redundancy_weight": float("nan")}, "redundancy_weight: expected a finite number"),
    (barlow, {"projector": (8, 0)}, "projector: expected more than 0"),
    (barlow, {"loading": Loading(timeout_s=float("inf"))}, "timeout_s: expected a finite number"),
    (barlow, {"max_steps": 0}, "max_steps: expected more than 0"),
    (supervised, {"lr": float("-inf")}, "lr: expected a finite number, at least 0"),
    (fixmatch, {"mu": 0}, "mu: expected more than 0"),
    (jigsaw, {"tile_features": 0}, "tile_features: expected more than 0"),
    (vae, {"beta": -1.0}, "beta: expected a finite number, at least 0"),
    (siamese_vae, {"decoder_width": 0}, "decoder_width: expected more than 0"),
    (transfer, {"init": Path("run"), "seeds": (-1,)}, "seeds: expected a whole number"),
    (active, {"resolution": 0}, "resolution: expected more than 0"),
    (pipeline, {"rounds": pipeline.Rounds(top_k=0)}, "top_k: expected more than 0"),
    (measured, {"run": Path("run"), "sizes": (0,)}, "sizes: expected more than 0"),
]


@pytest.mark.parametrize(("recipe", "changes", "message"), WRONG)
def test_numbers_that_make_no_run_are_refused(recipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.Config(**PATHS, **changes)


def test_a_benchmark_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="runs: expected more than 0"):
        bench_guarantees.Config(Path("pack"), runs=0)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UserError, match=r"trackers: expected some of .*tensorboard.*, found nope"):
        make_accelerator("no", None, ("nope",))


def test_what_an_optimizer_does_not_take_is_refused(few_digits: Path, tmp_path: Path) -> None:
    config = barlow.Config(
        pack=few_digits, out=tmp_path / "run", backbone="tiny_resnet", resolution=16, batch_size=32,
        projector=(8, 8), trust=0.0, trackers=(), progress=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="optimizer: LARS: expected"):
        barlow.run(config)
