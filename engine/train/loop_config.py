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

    Fields not described here mean what the options of `RunConfig` with their names mean.

    Attributes:
        epochs: passes over the loader; the schedule spans all of them.
        seed: seed of what the network draws while training (dropout); the loader has its own seed.
        on_non_finite: with either value, the batch is written to `bad_batches/`.
        max_steps: steps over all after which to end; with 0, the run leaves the weights that it begins with.
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
