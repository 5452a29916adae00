"""For tests of recipes with labels: options of a small run on the digits, and a check that runs repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.train.run import RunSummary
from loaders import LoaderOptions

FEW: dict[str, Any] = {
    "backbone": "test_resnet",  # timm's, which takes a third of tiny_resnet's time
    "resolution": 16,
    "labels_per_class": 4,
    "batch_size": 20,
    "epochs": 3,
    "lr": 0.1,
    "flip_p": 0.0,
    "loader": LoaderOptions(num_threads=1),
    "precision": "no",
    "log_every": 1,
    "trackers": (),
    "progress": False,
}
"""Options of a small run with 40 labels, without mirroring the digits."""


def check_exact_runs(config: Any, run: Callable[[Any], RunSummary], tmp_path: Path, steps: int) -> None:
    """Check that two runs, and one that is interrupted and resumed, leave the same bytes."""
    names = ("classifier.safetensors", "classifier-ema.safetensors", "accuracy.json")
    names += ("last/classifier.safetensors", "labels/validation.parquet")

    def left_by(out: Path) -> dict[str, bytes]:
        return {name: (out / name).read_bytes() for name in names if (out / name).exists()}

    whole = run(replace(config, max_steps=steps))
    assert whole.step == steps
    run(replace(config, out=tmp_path / "half", max_steps=steps // 2))
    resumed = run(
        replace(
            config, out=tmp_path / "half", max_steps=steps, resume=True, loader=LoaderOptions(num_threads=2)
        )
    )
    assert len(left_by(whole.out)) >= 2
    assert left_by(resumed.out) == left_by(whole.out)
    again = run(replace(config, out=tmp_path / "again", max_steps=steps))
    assert left_by(again.out) == left_by(whole.out)
