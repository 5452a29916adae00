"""Metrics, which stay on the device until the log step, and the file that they are logged to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.train.distributed import world_size
from engine.train.lines import LineWriter, read_lines
from loaders.common.errors import UserError

NO_STEP = 2**62


class NonFiniteLossError(UserError):
    """The loss, a gradient or a weight became NaN or infinite; `step` is the first such step, if known."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class MetricWindow:
    """Sums of metrics since the last log step, and the first step whose loss or gradients were not finite.

    `add` does not wait for the device; `read`, `state` and `check` do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # separate, since not every step has every metric
        # The first step whose loss, and the first step whose gradients, were not finite.
        self._first_bad_steps = torch.full((2,), NO_STEP, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(
        self, step: int, loss: Tensor, metrics: Mapping[str, Tensor], grad_norm: Tensor | None = None
    ) -> None:
        """Add the loss and metrics of a step, and its gradient norm if that is to be checked (scalars)."""
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        loss = loss.detach().reshape(())
        judged = torch.stack([loss, loss if grad_norm is None else grad_norm.to(loss).reshape(())])
        here = torch.where(torch.isfinite(judged), NO_STEP, step)
        self._first_bad_steps = torch.minimum(self._first_bad_steps, here)

    def read(self) -> dict[str, float]:
        """Return the means over steps and ranks, and empty the window.

        Each mean is over the steps that have the metric; skipped steps have none, not even a loss. If all
        steps were skipped, the loss is NaN.

        Raises:
            NonFiniteLossError: see `check`.
        """
        self.check()
        if not self._counts:
            return {"loss": math.nan}
        sums = zip(self._sums, self._over_ranks(), strict=True)
        means = {name: total / self._counts[name] for name, total in sums}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, which fits any number of ranks; every rank calls this.

        Returns:
            `counts`, the number of steps of each metric, and `sums`, as text since JSON has no NaN.
        """
        sums = self._over_ranks() if self._counts else []
        return {"counts": dict(self._counts), "sums": dict(zip(self._sums, map(repr, sums), strict=True))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue a window from its `state`."""
        # Older checkpoints have one count for all metrics.
        shared = int(state.get("count", 0))
        self._counts = dict(state.get("counts", dict.fromkeys(state["sums"], shared)))
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }

    def _over_ranks(self) -> list[float]:
        """Return the sums over steps, averaged over the ranks."""
        sums = torch.stack(list(self._sums.values()))
        if world_size() > 1:
            dist.all_reduce(sums)
            sums = sums / world_size()
        values: list[float] = sums.tolist()
        return values

    def check(self) -> None:
        """Check that all losses and gradients so far were finite on all ranks.

        Raises:
            NonFiniteLossError: on every rank, if one was not finite; the message names the first such step.
        """
        if world_size() > 1:
            dist.all_reduce(self._first_bad_steps, op=dist.ReduceOp.MIN)
        bad_loss, bad_gradient = (int(step) for step in self._first_bad_steps.tolist())
        if min(bad_loss, bad_gradient) == NO_STEP:
            return
        what = "a finite loss" if bad_loss <= bad_gradient else "finite gradients"
        raise NonFiniteLossError(
            f"training: expected {what}, found NaN or infinity first at step {min(bad_loss, bad_gradient)}; "
            "lower the learning rate or lengthen the warm-up",
            min(bad_loss, bad_gradient),
        )


class MetricsWriter(LineWriter):
    """Appends lines to `metrics.jsonl`; a resumed run first drops the lines of steps that it will repeat."""

    def __init__(self, path: Path, start_step: int) -> None:
        """Open the file.

        Args:
            path: the file, made if it does not exist.
            start_step: steps done so far; lines of later steps are dropped.
        """
        super().__init__(path, lambda record: _step_of(record) <= start_step)


def _step_of(record: Mapping[str, Any]) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else NO_STEP


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run, in order; see `read_lines` for what is left out."""
    return read_lines(path)[0]
