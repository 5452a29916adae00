"""Metrics that stay on the device until the log step, and the file they end in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed import world_size
from engine.files import write_atomic
from loaders.errors import UserError

NO_STEP = 2**62


class NonFiniteLossError(UserError):
    """The loss, or a weight, became NaN or infinite."""


class MetricWindow:
    """Sums of metrics since the last log step, and the first step whose loss was not finite.

    Nothing here waits for the device before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        """Start an empty window.

        Args:
            device: where the losses are.
        """
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._first_bad_step = torch.full((), NO_STEP, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, step: int, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Add one step's loss and metrics (scalars on the device)."""
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        here = torch.where(torch.isfinite(loss), NO_STEP, step)
        self._first_bad_step = torch.minimum(self._first_bad_step, here)

    def read(self) -> dict[str, float]:
        """Return the means over steps and ranks and empty the window, after at least one step.

        Waits for the device.

        Raises:
            NonFiniteLossError: some loss since the last call was not finite; on every rank.
        """
        self.check()
        sums = torch.stack(list(self._sums.values())) / self._count
        if world_size() > 1:
            dist.all_reduce(sums)
            sums = sums / world_size()
        means = dict(zip(self._sums, sums.tolist(), strict=True))
        self._sums, self._count = {}, 0
        return means

    def check(self) -> None:
        """Wait for the device and make sure that every loss so far, on every rank, was finite.

        Raises:
            NonFiniteLossError: naming the first step of which that is not true; on every rank.
        """
        if world_size() > 1:
            dist.all_reduce(self._first_bad_step, op=dist.ReduceOp.MIN)
        first_bad_step = int(self._first_bad_step)
        if first_bad_step != NO_STEP:
            raise NonFiniteLossError(
                f"training: expected a finite loss, found NaN or infinity first at step {first_bad_step}; "
                "lower the learning rate or lengthen the warm-up, the last checkpoint is from before it"
            )


class MetricsWriter:
    """Appends lines to `metrics.jsonl`; on resuming, lines of steps that will be taken again are dropped."""

    def __init__(self, path: Path, start_step: int) -> None:
        """Open the file.

        Args:
            path: the file, made when it does not exist.
            start_step: steps done so far; later lines, and a half-written last one, are dropped.
        """
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start_step]
        write_atomic(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("ab")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a number that JSON cannot hold becomes null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(plain).encode() + b"\n")
        self._file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a run, in order; a half-written last line is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    # A line is whole once its newline is there; whatever follows the last one was cut by a kill.
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line]
