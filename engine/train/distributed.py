"""Ranks, differentiable collectives, and the one place where an Accelerator is made.

One rule holds for the differentiable collectives: backward differentiates the SUM of the losses of all ranks.
DistributedDataParallel then divides the summed gradients by the number of ranks N. So

* a loss that every rank computes in full from gathered or reduced tensors (Barlow Twins) sums to N times
  itself, and the division gives the gradient of the loss once;
* a loss that is a mean over the rank's own rows sums to N times the mean over the joined batch, and the
  division gives the gradient of that mean.

Both equal what one rank computes on the joined batch, with no factor left to correct by hand.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor

from engine.choices import Device, Precision
from engine.device import taken_device
from engine.train.autocast import taken
from engine.train.trackers import check_trackers, prepare_trackers
from loaders.common.errors import UserError

ResultT = TypeVar("ResultT")

COLLECTIVE_TIMEOUT_S = 600
_PATIENCE = timedelta(days=7)  # timeout of ranks that wait for rank 0; a dead rank ends the wait at once
_patient: dict[Any, Any] = {}


def world_size() -> int:
    """Return the number of ranks; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 if there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_one_host() -> bool:
    """Return whether all ranks run on one host, by the launcher's LOCAL_WORLD_SIZE; True if it is not set.

    The answer is the same on every rank, since either one host has all ranks or no host has.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return not local.isdecimal() or int(local) >= world_size()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, differentiably.

    Args:
        tensor: any shape, the same on every rank.

    Returns:
        The sum, as a new tensor on every rank; `tensor` itself if there is only one rank.
    """
    if world_size() == 1:
        return tensor
    total: Tensor = _AllReduceSum.apply(tensor)
    return total


def all_gather(tensor: Tensor) -> Tensor:
    """Join the rows of all ranks in rank order, differentiably.

    Args:
        tensor: [B, ...], the same shape on every rank.

    Returns:
        [N * B, ...] on every rank; `tensor` itself if there is only one rank.
    """
    if world_size() == 1:
        return tensor
    joined: Tensor = _AllGather.apply(tensor)
    return joined


def refuse_ranks(command: str) -> None:
    """Refuse to run in several processes, for commands that do not divide their work.

    Raises:
        UserError: a launcher started several processes.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        raise UserError(
            f"{command}: expected one process, found {started}; start it with python, not a launcher"
        )


def on_main(function: Callable[[], ResultT]) -> ResultT:
    """Call a function on rank 0 only and give its result, which is pickled, to every rank.

    If the function raises a `UserError`, rank 0 alone raises it, so that it is printed once. The other ranks
    exit with the code of a user's mistake instead of waiting for a result.
    """
    if world_size() == 1:
        return function()
    message: list[Any] = [None, False]
    failure: UserError | None = None
    if rank() == 0:
        try:
            message[0] = function()
        except UserError as error:
            message[1], failure = True, error
    dist.broadcast_object_list(message, group=_patient_group())
    if failure is not None:
        raise failure
    if message[1]:
        raise SystemExit(2)
    result: ResultT = message[0]
    return result


def _patient_group() -> Any:
    """Return a gloo group whose long timeout lets ranks wait for rank 0; made once per process group."""
    world = dist.group.WORLD
    if world not in _patient:
        _patient.clear()
        _patient[world] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _patient[world]


def gather_on_main(value: ResultT) -> list[ResultT]:
    """Collect one value from every rank on rank 0, in rank order; the other ranks get an empty list."""
    if world_size() == 1:
        return [value]
    parts: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, parts)
    return parts or []


def seed_everything(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python.

    Every rank uses the same seed, so that all ranks build the same network. When training starts, the loop
    gives each rank's generators a stream of their own. The loaders do not draw from these generators.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm's layers draw from the global generator


def make_accelerator(
    precision: Precision = "auto",
    out: Path | None = None,
    trackers: tuple[str, ...] = (),
    device: Device = "auto",
) -> Accelerator:
    """Make the Accelerator of a run, and the process group if a launcher started several processes.

    accelerate joins CPU processes into a group, whose collectives gloo carries, only with `cpu=True`; so runs
    on CPUs set that.

    Args:
        precision: "auto" takes that of the run in `out`; for a new run, bfloat16 autocast on hardware that
            supports it, float16 on other CUDA devices, and float32 on other CPUs.
        out: run folder; trackers write into its subfolder `trackers/`.
        trackers: names that accelerate knows, such as "tensorboard" or "wandb".
        device: see `engine.device`.

    Returns:
        The Accelerator; buffers are not broadcast, because global BatchNorm keeps them equal on all ranks.

    Raises:
        UserError: a tracker is unknown or not installed, `taken_device` refuses the device, or the precision
            is float16 on a CPU.
    """
    check_trackers(trackers)
    prepare_trackers(trackers)
    on_cpu = taken_device(device) == "cpu"
    if not on_cpu:
        torch.set_float32_matmul_precision("high")  # TF32, for losses computed outside autocast
        torch.backends.cudnn.benchmark = True  # pays off, since shapes rarely change
    # If OMP_NUM_THREADS is unset under a launcher, accelerate warns and picks a number of threads.
    if on_cpu and "LOCAL_RANK" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # torch deprecates an argument that accelerate passes; accelerate does not pass its successor yet.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    chosen = taken(precision, out, device)
    if on_cpu and chosen == "fp16":  # accelerate would silently use float32
        raise UserError(
            "precision: expected bf16 or no on a processor, found fp16; change --precision, or "
            "continue a run that a GPU began in float16 on a GPU"
        )
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=chosen,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(
            project_dir=str(out) if out else None, logging_dir=str(out / "trackers") if out else None
        ),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S)),
        ],
    )
