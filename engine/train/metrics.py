"""Metrics that stay on the device until the log step, and the file for them."""

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
        """Keep the step."""
        super().__init__(message)
        self.step = step


class MetricWindow:
    """Sums of metrics since the last log step, and the first step whose loss or gradients were not finite.

    Only `read` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Start an empty window.

        Args:
            device: device of the losses.
        """
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # not every step has every metric
        # First step with a bad loss, and with bad gradients.
        self._first_bad_steps = torch.full((2,), NO_STEP, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(
        self, step: int, loss: Tensor, metrics: Mapping[str, Tensor], grad_norm: Tensor | None = None
    ) -> None:
        """Add one step's loss and metrics, and its gradients' norm if it is to be judged (scalars)."""
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        loss = loss.detach().reshape(())
        judged = torch.stack([loss, loss if grad_norm is None else grad_norm.to(loss).reshape(())])
        here = torch.where(torch.isfinite(judged), NO_STEP, step)
        self._first_bad_steps = torch.minimum(self._first_bad_steps, here)

    def read(self) -> dict[str, float]:
        """Return the means over steps and ranks, and empty the window; skipped steps have no loss.

        A metric's mean is over the steps that have it.

        Waits for the device.

        Raises:
            NonFiniteLossError: on every rank, if a loss since the last call was not finite.
        """
        self.check()
        if not self._counts:
            return {"loss": math.nan}
        sums = zip(self._sums, self._over_ranks(), strict=True)
        means = {name: total / self._counts[name] for name, total in sums}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """Return the state from which `restore` goes on with this window, on any number of ranks.

        Waits for the device; called on every rank.

        Returns:
            `counts`, the steps of each metric so far, and `sums`, numbers as text: JSON has no NaN.
        """
        sums = self._over_ranks() if self._counts else []
        return {"counts": dict(self._counts), "sums": dict(zip(self._sums, map(repr, sums), strict=True))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a window that a checkpoint kept."""
        # Checkpoints of before have one count for all.
        shared = int(state.get("count", 0))
        self._counts = dict(state.get("counts", dict.fromkeys(state["sums"], shared)))
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }

    def _over_ranks(self) -> list[float]:
        """Return the sums over steps, as means over the ranks."""
        sums = torch.stack(list(self._sums.values()))
        if world_size() > 1:
            dist.all_reduce(sums)
            sums = sums / world_size()
        values: list[float] = sums.tolist()
        return values

    def check(self) -> None:
        """Wait for the device and make sure that all losses and gradients so far, on every rank, were finite.

        Raises:
            NonFiniteLossError: on every rank; names the first step of which that is not true.
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
    """Appends lines to `metrics.jsonl`; on resuming, lines of steps that will be taken again are dropped."""

    def __init__(self, path: Path, start_step: int) -> None:
        """Open the file.

        Args:
            path: the file, made when it does not exist.
            start_step: steps done so far; later lines are dropped.
        """
        super().__init__(path, lambda record: _step_of(record) <= start_step)


def _step_of(record: Mapping[str, Any]) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else NO_STEP


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run, in order; see `read_lines` for what is left out."""
    return read_lines(path)[0]
