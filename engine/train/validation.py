"""Validation during training: the best state may be kept, and training may stop early.

Between steps, the loop measures the network that will be used (`Recipe.network`). Checkpoints keep the state
of the validation and the best weights, so a resumed run chooses and stops like an uninterrupted one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.choices import Keep
from engine.evaluate.predict import Accuracy, measure_accuracy
from engine.train.distributed import on_main
from engine.train.recipe import Recipe
from loaders.batch import Batch, Loader
from loaders.common.notice import tell
from loaders.packs import LabelTable
from loaders.packs.labels.validation import SET_ASIDE_PATH

MEASUREMENTS = 20
"""Approximate largest number of measurements in a run, if `Validation.every_steps` is None."""

FEWEST_BETWEEN = 10
"""Smallest number of steps between measurements, if `Validation.every_steps` is None."""

AT_THE_END = sys.maxsize
"""Value of `Validation.every_steps` for one measurement after the last step."""


@dataclass(frozen=True)
class Validation:
    """The plan of a validation: what to measure on, how often, and what the results decide.

    Attributes:
        loader: this rank's part of the labelled images, in evaluation mode.
        every_steps: optimizer steps between measurements; None for a twentieth of the run, but at
            least 10.
        keep: the weights that training ends with: the last, or the best.
        patience: training ends after this many measurements without a new best accuracy; 0 for never. Of
            equal accuracies, the first is the best.
        set_aside: validation labels to keep in the run folder, if they are not those of a split.
        from_start: measure before the first step too, so that the start may be the best state.
    """

    loader: Loader[Batch]
    every_steps: int | None = None
    keep: Keep = "last"
    patience: int = 0
    set_aside: LabelTable | None = None
    from_start: bool = False


@dataclass
class ValidationState:
    """The state of a validation, with its defaults before the first measurement.

    Attributes:
        best_step: optimizer steps done at the best measurement; -1 for none yet.
        best_top1: accuracy there, in [0, 1].
        num_worse: number of measurements since the best one.
        start_top1: accuracy before the first step; -1 if it was not measured.
    """

    best_step: int = -1
    best_top1: float = -1.0
    num_worse: int = 0
    start_top1: float = -1.0


@dataclass(frozen=True)
class Measured:
    """The result of `Validator.after_step`.

    Attributes:
        record: values for metrics.jsonl and the trackers; empty if no measurement was due.
        said: the same values in words.
        stop: whether training ends here.
    """

    record: Mapping[str, float] = field(default_factory=dict)
    said: str = ""
    stop: bool = False


class Validator:
    """Carries out the plan of a validation."""

    def __init__(self, validation: Validation, out: Path, total_steps: int) -> None:
        self.plan, self._out, self._total_steps = validation, out, total_steps
        self._every_steps = validation.every_steps or max(FEWEST_BETWEEN, total_steps // MEASUREMENTS)
        self.state = ValidationState()
        self.best: dict[str, Tensor] = {}

    @property
    def rules(self) -> Mapping[str, str]:
        """The rules of the validation; see `Recipe.rules`."""
        plan, patience = self.plan, self.plan.patience
        start = ", from the start" if plan.from_start else ""
        when = "at the end" if plan.every_steps == AT_THE_END else f"every {self._every_steps} steps"
        rule = f"{when}, keep {plan.keep}, patience {patience}{start}"
        return {"validation": rule}

    @property
    def is_over(self) -> bool:
        """Whether training ends because the accuracy no longer rises."""
        return 0 < self.plan.patience <= self.state.num_worse

    def keep_labels(self) -> None:
        """Write the labels in `set_aside`, if any, into the claimed run folder; every rank calls this."""
        table, path = self.plan.set_aside, self._out / SET_ASIDE_PATH
        if table is not None:
            on_main(lambda: None if path.is_file() else table.write(path))

    def described(self) -> dict[str, Any]:
        """Return the state in JSON types, for a checkpoint."""
        return asdict(self.state)

    def restore(self, state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Continue from the state in a checkpoint."""
        self.state, self.best = ValidationState(**state), dict(best)

    def after_step(self, step: int, recipe: Recipe, device: torch.device) -> Measured:
        """Measure if it is due after `step` steps (0 measures the start); every rank calls this."""
        return self._measured(step, recipe, device) if self._is_due(step) else Measured()

    def after_stop(self, step: int, recipe: Recipe, device: torch.device) -> None:
        """Measure the end of a run that ends early, since its last weights may be the best.

        Every rank calls this after the last checkpoint, so a run that resumes there is not affected.
        """
        if step and not self._is_due(step):
            tell(f"step {step}, where the run ends early: {self._measured(step, recipe, device).said}")

    def _is_due(self, step: int) -> bool:
        return step % self._every_steps == 0 or step == self._total_steps

    def _measured(self, step: int, recipe: Recipe, device: torch.device) -> Measured:
        found = self._measure(recipe.network, device)
        start = found.top1 if step == 0 else self.state.start_top1
        if found.top1 > self.state.best_top1:
            self.state = ValidationState(step, found.top1, start_top1=start)
            if self.plan.keep == "best":
                self.best = {name: t.detach().cpu().clone() for name, t in recipe.state_dict().items()}
        else:
            self.state.num_worse += 1
        assert found.loss is not None
        record = {"validation_top1": found.top1, "validation_loss": found.loss}
        if found.mean_class_top1 is not None:
            record["validation_mean_class_top1"] = found.mean_class_top1
        said = f"validation top-1 {found.top1:.1%}"
        for name, network in recipe.measured_beside.items():
            beside = self._measure(network, device).top1
            record[f"validation_{name}_top1"] = beside
            said += f" ({name} weights {beside:.1%})"
        best = f"best {self.state.best_top1:.1%} at step {self.state.best_step}"
        said += f", loss {found.loss:.4g}; {best}"
        if self.is_over:
            said += f"; no improvement in {self.state.num_worse} measurements, so training ends"
        return Measured(record, said, self.is_over)

    def _measure(self, network: nn.Module, device: torch.device) -> Accuracy:
        return measure_accuracy(network, self.plan.loader, device, self._out)
