"""Steps whose loss or gradients are not finite: finding them, skipping them, and keeping their batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.choices import OnNonFinite
from engine.train.distributed import rank, world_size
from engine.train.metrics import NonFiniteLossError
from loaders.batch import Batch, Loader, PairedBatch
from loaders.common.files import write_atomic

BAD_BATCHES = "bad_batches"
_SHOWN_ROWS = 8


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the joint norm of all gradients, a scalar, which is not finite if any gradient is not."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class StepGuard:
    """Decides whether a step is taken.

    Args:
        module: module whose buffers a skipped step must not change.
        on_non_finite: "stop" takes every step, and the next log step or checkpoint stops the run if one was
            bad; "skip" judges each step, for which it waits for the device.
    """

    def __init__(self, module: nn.Module, on_non_finite: OnNonFinite) -> None:
        self._module = module
        self._skips = on_non_finite == "skip"
        self._buffers: list[Tensor] = []
        self.num_skipped = 0

    def begin(self) -> None:
        """Copy the buffers, such as running statistics, that the forward pass will change."""
        if self._skips:
            self._buffers = [buffer.clone() for buffer in self._module.buffers()]

    @torch.no_grad()
    def allows(self, loss: Tensor, norm: Tensor | None) -> bool:
        """Return the same answer on every rank: whether to take the step. If not, restore the buffers.

        Args:
            loss: loss of this rank.
            norm: norm of the gradients; None if a gradient scaler judges the gradients.
        """
        if not self._skips:
            return True
        finite = torch.isfinite(loss) if norm is None else torch.isfinite(loss) & torch.isfinite(norm)
        flag = finite.to(torch.int32).reshape(())
        if world_size() > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        if bool(flag):
            return True
        for buffer, kept in zip(self._module.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)
        self.num_skipped += 1
        return False


def draw_again(loader: Loader[Any], step: int) -> Any:
    """Return this rank's batch of a past step (counted from 1), which the loader can make again."""
    epoch, start = divmod(step - 1, loader.steps_per_epoch)
    return next(iter(loader.epoch(epoch, start_step=start)))


def save_bad_batch(out: Path, step: int, batch: Batch | PairedBatch) -> str:
    """Write this rank's batch of a bad step into the run folder.

    Args:
        out: run folder.
        step: number of the step, counted from 1.
        batch: batch of the step.

    Returns:
        A phrase that names the rows and the file.
    """
    streams = (
        {"": batch}
        if isinstance(batch, Batch)
        else {"labeled.": batch.labeled, "unlabeled.": batch.unlabeled}
    )
    tensors: dict[str, Tensor] = {}
    for prefix, part in streams.items():
        tensors |= {f"{prefix}view_{i}": view for i, view in enumerate(part.views)}
        tensors |= {f"{prefix}index": part.index, f"{prefix}valid": part.valid}
        if part.labels is not None:
            tensors[f"{prefix}labels"] = part.labels
    path = out / BAD_BATCHES / f"step-{step:08d}-rank{rank()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain))
    rows = [row for name, tensor in plain.items() if name.endswith("index") for row in tensor.tolist()]
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")
    return f"rows {shown} ({len(rows)} of rank {rank()}) are in {path}"


def check_weights(network: nn.Module, step: int) -> None:
    """Refuse weights that are not finite, before they are saved.

    Raises:
        NonFiniteLossError: a weight is NaN or infinite.
    """
    if not bool(torch.stack([torch.isfinite(p).all() for p in network.parameters()]).all()):
        raise NonFiniteLossError(
            f"training: expected finite weights, found NaN or infinity after step {step}; lower the learning "
            "rate or lengthen the warm-up"
        )
