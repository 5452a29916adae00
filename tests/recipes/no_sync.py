"""A step that must not wait for the device: whatever would do so on a GPU raises, also on the CPU."""

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

# What brings a value to the host, as Python calls it. `tensor` and its like bring one to the device, from
# memory that is not pinned, which waits as well.
_CALLS: dict[Any, str] = {
    **{getattr(Tensor, n): n for n in ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "bincount")},
    **{getattr(Tensor, n): n for n in ("__bool__", "__int__", "__float__", "__index__", "__contains__")},
    **{getattr(torch, n): n for n in ("tensor", "as_tensor", "from_numpy", "nonzero", "unique", "bincount")},
    torch.equal: "equal",
    torch.allclose: "allclose",
    torch.masked_select: "masked_select",
}
# The same, and what hides inside other operations, as the dispatcher sees it. The sizes of these results
# depend on values, which the host therefore has to know.
_OPERATIONS = {
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim"),
    *("_unique2", "unique_consecutive", "bincount", "repeat_interleave"),
}


class SynchronisedError(AssertionError):
    """A step waited for the device."""


def _is_of_an_optimizer() -> bool:
    """Tell whether torch's own optimizer asks, whose step counters stay on the CPU."""
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
    """Raise `SynchronisedError` where the block would wait for a device."""
    with ExitStack() as modes:
        modes.enter_context(_Calls())
        modes.enter_context(_Operations())
        yield


@contextmanager
def guarded_steps() -> Iterator[list[int]]:
    """Run every training step under `no_sync`; yields the list of steps that were so taken.

    A step is all of it: schedule, forward, backward, gradient norm, optimizer, what follows it, and what is
    kept for the log.
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
