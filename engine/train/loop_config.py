"""The options of the training loop."""

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
    """The options of the training loop.

    Fields not described here have the meaning of the `RunConfig` options of the same names.

    Attributes:
        epochs: passes over the loader, and length of the schedule, unless `steps` is set.
        seed: seed of the network's random numbers during training (dropout); the loader has its own seed.
        on_non_finite: with either value, the bad batch is written to `bad_batches/`.
        max_steps: the run ends after this many steps, including those before a resume; with 0 it keeps its
            initial weights.
        optimizing: optimizer options.
        config: the recipe's configuration in JSON types, for config.json.
        runtime_fields: names in `config` whose values may differ when a run resumes.
        backbone_metadata: metadata for `load_backbone`, stored with the weights.
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
        """Refuse numbers out of range."""
        check_numbers(self)
