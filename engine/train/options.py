"""Options that many recipes share. Reading and checking them needs no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.choices import Keep, OptimizerName, Preset, ScheduleName
from loaders.common.checks import Count, Positive, PositiveShare
from loaders.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """On which images a run with labels is validated while it trains, and what the results decide."""

    validation_split: str | None = None
    """Images to validate on while training: a labelled split, or a label table (.parquet), whose rows are
    then not trained on; "" for none. By default the table that the run of --init set aside; else a labelled
    split named val or validation (none if it shares images with training or test); else a tenth of the
    labels, if every class has at least 20. The line "validation: ..." at the start of a run says which."""
    validation_share: float | None = None
    """Instead of --validation-split: share of each class's training labels to set aside for validation,
    chosen by --label-seed and written to labels/validation.parquet in the run folder; 0 for none."""
    validate_every: Count | None = None
    """Steps between validations; by default a twentieth of the run, but at least 10. The end is validated
    too."""
    keep: Keep | None = None
    """Weights that the run saves and tests: last; or best, by validation accuracy, with the last ones in
    last/. By default best if the classifier starts as the linear probe, so that the run does not end below
    the probe, and last otherwise."""
    patience: int = 0
    """Stop after this many validations without a higher accuracy; 0 trains to the end."""

    @property
    def validation_table(self) -> Path | None:
        """The label table that `validation_split` names; None for a split."""
        named = self.validation_split or ""
        return Path(named) if named.endswith(".parquet") else None

    def check_validation(self) -> None:
        """Refuse options that are out of range or contradict each other.

        Raises:
            UserError: the first mistake.
        """
        if self.validation_split and self.validation_share:
            raise UserError(
                "validation: expected --validation-split or --validation-share, found both; leave one out"
            )
        if self.validation_share is not None and not 0.0 <= self.validation_share < 1.0:
            raise UserError(
                f"validation_share: expected a share below 1, found {self.validation_share}; lower it"
            )
        off = (self.validation_split == "" and not self.validation_share) or (
            self.validation_share == 0.0 and not self.validation_split
        )
        if off:
            self.require_validation("neither")

    def require_validation(self, found: str) -> None:
        """Refuse --patience and --keep best in a run without validation images.

        Args:
            found: what the run has instead of validation images, for the message.

        Raises:
            UserError: one of these options is set.
        """
        if self.patience or self.keep == "best":
            raise UserError(
                "validation: expected --validation-split or --validation-share with --patience or --keep "
                f"best, which choose by images outside the test split, found {found}; give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Where the defaults of a recipe come from."""

    preset: Preset = "paper"
    """Source of the other options' defaults. paper: the paper's settings; cpu: a network, resolution, sizes
    and length for minutes of training on a processor; auto: paper with a GPU, else cpu. Options on
    the command line take precedence; the first line printed says what was set; config.json has all values."""

    def settle(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return what the preset changes; see `engine.train.presets.settle`."""
        from engine.train.presets import settle

        return settle(self)

    def describe_preset(self, asked: Any, defaults: Mapping[str, Any]) -> str:
        """Return a line that says what the preset set; "" if `asked` has the preset "paper"."""
        from engine.train.presets import describe

        return "" if asked.preset == "paper" else describe(self, asked.preset, defaults)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Options that change how the weights of any recipe are updated."""

    optimizer: OptimizerName = "paper"
    """Optimizer: the paper's; or sgd, lars, adamw or muon in its place, with --optimizer-lr. muon
    orthogonalises the updates of the backbone's matrices, with Nesterov momentum, and updates all other
    parameters by NAdamW. Parameters that the paper's optimizer does not decay are not decayed here either."""
    optimizer_lr: Positive | None = None
    """Peak learning rate in place of the recipe's own, not scaled by the batch size; the ratio of --lr-head
    to --lr is kept. BEiT fine-tunes with adamw at 0.0005."""
    optimizer_momentum: PositiveShare | None = None
    """Momentum of sgd, lars or muon, below 1. By default 0.95 for muon; for the others, the
    recipe's own, or 0.9 if it has none."""
    layer_decay: PositiveShare | None = None
    """With adamw: learning rate of each backbone layer as a share of the next layer's, so that the first
    layers change least. BEiT (Bao et al. 2022): 0.65 to 0.75."""
    clip_norm: Positive | None = None
    """Largest joint norm of all gradients, to which larger ones are scaled down. No paper here clips."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0 to the schedule's value. Paper: none."""
    schedule: ScheduleName = "paper"
    """Learning-rate schedule: the paper's; or cosine, down to 0 after --warmup-epochs; or one_cycle, linearly
    up from 20 % of the peak for 23 % of the run, then linearly down to 7 % (Smith and Topin 2018)."""
    start_resolution: Count | None = None
    """Progressive resizing: side, in pixels, to which views are shrunk at first; it grows by 4 pixels at a
    time to --resolution. None: --resolution from the start."""
    grown_at: PositiveShare = 0.6
    """Share of the run after which views have their full size, if --start-resolution is given."""
    micro_batch: Count | None = None
    """Gradient accumulation: images that each process passes through the network at once. Like --batch-size,
    it counts only labelled images if there are both kinds. It must divide the process's share of the batch,
    which is the default."""

    def check_optimizer(self) -> None:
        """Refuse options that are out of range or contradict each other.

        Raises:
            UserError: the first mistake.
        """
        if self.layer_decay is not None and self.optimizer != "adamw":
            raise UserError(
                f"layer_decay: expected --optimizer adamw, found {self.optimizer}; change one of them"
            )
        if self.optimizer_momentum is not None and self.optimizer not in ("sgd", "lars", "muon"):
            raise UserError(
                f"optimizer_momentum: expected --optimizer sgd, lars or muon, found {self.optimizer}; change "
                "one of them"
            )
        if self.optimizer_momentum == 1.0:
            raise UserError("optimizer_momentum: expected less than 1, found 1.0; lower it")
        if self.start_resolution is not None and self.start_resolution < 8:
            raise UserError(
                f"start_resolution: expected at least 8 pixels, found {self.start_resolution}; raise it"
            )
