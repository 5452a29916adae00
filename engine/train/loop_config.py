"""How the training loop carries a run out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.choices import OnNonFinite
from engine.train.options import OptimizerOptions
from loaders.common.checks import Count, check_numbers


@dataclass(frozen=True)
class LoopConfig:
    """How a run is carried out.

    Attributes:
        out: run folder.
        epochs: passes over the loader; the schedule spans all of them.
        seed: seed of what the network draws while training (dropout); the loader has its own seed.
        resume: go on from the newest whole checkpoint of `out`, or start if there is none.
        log_every: steps between log steps.
        checkpoint_every_steps: steps between checkpoints; the end of the run always writes one.
        keep_checkpoints: newest checkpoints to keep.
        on_non_finite: "stop" ends the run at the next log step after a loss or gradient that is not finite;
            "skip" leaves such a step out, at the price of waiting for the device at every step. Either way
            the batch is written to `bad_batches/`.
        steps: length of the run instead of `epochs`, also for the schedule; None counts epochs.
        max_steps: end the run early after this many steps over all, with the schedule of the full run; after
            none, the weights are left as the run begins.
        progress: show progress on rank 0.
        compile: compile the backbone.
        optimizing: optimizer of the weights and its options.
        config: the recipe's configuration in JSON types, for config.json.
        runtime_fields: names in `config` that may differ on resuming.
        backbone_metadata: metadata for `load_backbone`, stored beside the weights.
    """

    out: Path
    epochs: Count
    seed: int = 0
    resume: bool = False
    log_every: Count = 10
    checkpoint_every_steps: Count = 500
    keep_checkpoints: Count = 3
    on_non_finite: OnNonFinite = "stop"
    steps: Count | None = None
    max_steps: int | None = None
    progress: bool = True
    compile: bool = False
    optimizing: OptimizerOptions = field(default_factory=OptimizerOptions)
    config: Mapping[str, Any] = field(default_factory=dict)
    runtime_fields: Collection[str] = ("resume", "max_steps")
    backbone_metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse counts that make no run."""
        check_numbers(self)
