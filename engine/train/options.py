"""Options that many recipes share. Reading and checking them needs no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.choices import Keep, OptimizerName, Preset, ScheduleName
from loaders.common.checks import Count, Positive, PositiveShare
from loaders.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """On which images a run with labels is measured while it trains, and what follows from the result."""

    validation_split: str | None = None
    """What to measure on while training: a labelled split, or a label table (.parquet), whose rows are then
    not trained on; "" for nothing. By default the table that the run of --init set aside; else a split named
    val or validation; else a tenth of the labels, where every class has 20; else nothing. The first line of
    a run says which."""
    validation_share: float | None = None
    """In its place: share of the training labels to set aside, class by class, chosen by --label-seed and
    left as labels/validation.parquet in the run folder; 0 for none."""
    validate_every: Count | None = None
    """Steps between these measurements; by default a twentieth of the run. The end is measured too."""
    keep: Keep | None = None
    """Weights that the run leaves to be used, and whose test accuracy is measured: the last; or the best by
    validation accuracy, the last then lie in last/. By default the best where the classifier starts at the
    linear probe, so that the run does not end below it, and the last elsewhere."""
    patience: int = 0
    """Stop after so many measurements without a rise of the validation accuracy; 0 trains to the end."""

    def check_validation(self) -> None:
        """Refuse options that cannot be measured.

        Raises:
            UserError: the first.
        """
        if self.validation_split and self.validation_share:
            raise UserError(
                "validation: expected --validation-split or --validation-share, found both; leave out one"
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
        """Refuse to stop or to choose by a validation that does not happen.

        Args:
            found: what was found in place of images to measure on.

        Raises:
            UserError: the run stops or chooses by validation.
        """
        if self.patience or self.keep == "best":
            raise UserError(
                "validation: --patience and --keep best choose by images that are not the test's; expected "
                f"--validation-split or --validation-share, found {found}"
            )


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Where the defaults of a recipe come from."""

    preset: Preset = "paper"
    """Defaults of the other options: the paper's; cpu: a network, a resolution, sizes and a length that a
    processor trains in minutes; auto: the paper's where --device takes a GPU, else cpu. Options that are
    given count; the first line says what was set, and config.json keeps plain values."""

    def settle(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return what the preset changes, see `engine.train.presets.settle`."""
        from engine.train.presets import settle

        return settle(self)

    def describe_preset(self, asked: Any, defaults: Mapping[str, Any]) -> str:
        """Say what the preset set, where one was asked for."""
        from engine.train.presets import describe

        return "" if asked.preset == "paper" else describe(self, asked.preset, defaults)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights of any recipe are updated, beyond the choice of its paper."""

    optimizer: OptimizerName = "paper"
    """What moves the weights: the paper's choice; or sgd, lars, adamw or muon in its place, with
    --optimizer-lr. muon orthogonalises what the backbone's matrices move by, with Nesterov's momentum, and
    moves the rest by NAdamW. What the paper's choice does not decay is not
    decayed here either."""
    optimizer_lr: Positive | None = None
    """Peak learning rate in place of the recipe's own, for any batch size; --lr-head keeps its ratio to
    --lr. BEiT fine-tunes with adamw at 0.0005."""
    optimizer_momentum: PositiveShare | None = None
    """With sgd, lars or muon: momentum, below 1. By default 0.95 for muon, the recipe's own for others."""
    layer_decay: PositiveShare | None = None
    """With adamw: rate of a layer of the backbone as a share of that of the layer behind it, so that the
    first layers move least. BEiT (Bao et al. 2022): 0.65 to 0.75."""
    clip_norm: Positive | None = None
    """Largest norm of all gradients together; beyond it they are scaled down. No paper here has one."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0 to what its schedule says. Paper: none."""
    schedule: ScheduleName = "paper"
    """Learning rate over the run: the paper's; or cosine, down to 0 after --warmup-epochs; or one_cycle, up
    from a fifth of the peak over 23 % of the run, then down to 7 %, both linear (Smith and Topin 2018)."""
    start_resolution: Count | None = None
    """Progressive resizing: side of the views at the first step, from which it grows by 4 pixels at a time to
    --resolution; the networks see shrunk views. None: --resolution from the start."""
    grown_at: PositiveShare = 0.6
    """Share of the run after which the views have their full size, where --start-resolution is given."""
    micro_batch: Count | None = None
    """Images of --batch-size that go through the network at once on each process, with their unlabelled
    ones; the gradient is that of the whole batch. By default all; must divide a process's share."""

    def check_optimizer(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UserError: the first.
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
