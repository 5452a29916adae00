"""Check, even on a CPU, that a step does not wait for the device: calls that would wait on a GPU raise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.train.loop import _Run

# Functions called from Python that copy a value to the host. `tensor` and similar functions copy one to the
# device from memory that is not pinned, which waits as well.
_CALLS: dict[Any, str] = {
    **{getattr(Tensor, n): n for n in ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "bincount")},
    **{getattr(Tensor, n): n for n in ("__bool__", "__int__", "__float__", "__index__", "__contains__")},
    **{getattr(torch, n): n for n in ("tensor", "as_tensor", "from_numpy", "nonzero", "unique", "bincount")},
    torch.equal: "equal",
    torch.allclose: "allclose",
    torch.masked_select: "masked_select",
}
# Operations that copy a value to the host, by their names in the dispatcher, which sees them inside other
# operations too. For some, the size of the result depends on values, for which the host has to wait.
_OPERATIONS = {
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim"),
    *("_unique2", "unique_consecutive", "bincount", "repeat_interleave"),
}


class SynchronisedError(AssertionError):
    """A step waited for the device."""


def _is_of_an_optimizer() -> bool:
    """Return whether the caller is one of torch's optimizers, whose step counters are on the CPU."""
    frame = sys._getframe(1)
    while frame is not None:
        if "torch/optim/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CALLS and not _is_of_an_optimizer():
            raise SynchronisedError(f"{_CALLS[func]} inside a step")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith(("index", "_index_put")) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if (name in _OPERATIONS or masked) and not _is_of_an_optimizer():
            raise SynchronisedError(f"{'a mask as an index' if masked else name} inside a step")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_sync() -> Iterator[None]:
    """Raise `SynchronisedError` if code in the block would wait for a device."""
    with ExitStack() as modes:
        modes.enter_context(_Calls())
        modes.enter_context(_Operations())
        yield


@contextmanager
def guarded_steps() -> Iterator[list[int]]:
    """Run every training step under `no_sync`; yield the list of the guarded steps.

    A step is everything from schedule, forward, backward, gradient norm and optimizer to moving averages and
    the metrics that are kept for the log.
    """
    taken: list[int] = []
    step = _Run._train_step

    def guarded(run: _Run, *args: Any) -> bool:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")
        try:
            with no_sync():
                return step(run, *args)
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            taken.append(run.step)

    with mock.patch.object(_Run, "_train_step", guarded):
        yield taken
