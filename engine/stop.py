"""SIGTERM turned into a stop at one step that all ranks agree on."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from engine.distributed import world_size

EXIT_STOPPED = 75
"""Exit code of a run that was told to stop and saved itself: EX_TEMPFAIL, "try again later"."""


class RunStopped(SystemExit):
    """Ends the process with `EXIT_STOPPED` after the checkpoint was written."""

    def __init__(self, message: str) -> None:
        """Keep the message for whoever catches this."""
        super().__init__(EXIT_STOPPED)
        self.message = message


class StopSignal:
    """Asks, once per step, whether any rank was told to stop.

    The signal reaches the ranks at different steps, but a checkpoint needs all of them at the same one. So
    each `poll` starts a tiny reduction over gloo, in a group of its own, and reads the one started a step
    earlier, which has long arrived: no rank waits and no device is involved. A second SIGTERM ends the
    process at once.
    """

    def __enter__(self) -> StopSignal:
        self._told = False
        self._pending: tuple[torch.Tensor, Any] | None = None
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        # Python allows handlers only in the main thread; elsewhere the caller has to stop the run itself.
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
        if self._pending is not None and kind is None:
            self._pending[1].wait()
            self._pending = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def poll(self) -> bool:
        """Return whether to stop now; every rank calls it after every step and gets the same answer."""
        if self._group is None:
            return self._told
        agreed = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            agreed = bool(flag.item())
        flag = torch.tensor(int(self._told))
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True))
        return agreed
