"""SIGTERM turned into a stop at one step that all ranks agree on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from engine.distributed import rank, world_size
from loaders.errors import LoaderError

ResultT = TypeVar("ResultT")

EXIT_STOPPED = 75
"""Exit code of a run that was told to stop and saved itself: EX_TEMPFAIL, "try again later"."""


class RunStopped(SystemExit):
    """Ends the process with `EXIT_STOPPED` after the checkpoint was written."""

    def __init__(self, message: str) -> None:
        """Keep the message for whoever catches this."""
        super().__init__(EXIT_STOPPED)
        self.message = message


class _ToldToStop(BaseException):
    """Leaves the wait for a batch; nothing but `StopSignal.wait_for` catches it."""


class StopSignal:
    """Asks, before every step, whether any rank was told to stop.

    A checkpoint needs all ranks at the same step, and a rank that has begun a step cannot leave it, nor can
    the others leave the collectives in which they wait for it. So no rank begins a step before `agree` has
    joined them all: each comes with its batch, or at once when the signal finds it waiting for one. The
    reduction is one number over gloo, in a group of its own, and no device is involved.

    Further signals change nothing: where a scheduler tells every process and a launcher hands on what it was
    told, a rank gets two. A signal that comes when no step is left ends the process as the block is left,
    instead of being lost on whatever the command does next.

    Raises:
        RunStopped: on leaving the block, when the signal came and nobody stopped for it.
    """

    def __enter__(self) -> StopSignal:
        self._told = False
        self._waiting = False
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        # Python allows handlers only in the main thread; elsewhere the caller has to stop the run itself.
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:  # None: one that the interpreter did not set and cannot give back
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)
        if self._group is not None:  # else each training of a command would keep its sockets and threads
            dist.destroy_process_group(self._group)
        if self._told and kind is None:
            line = "SIGTERM: this training is finished and saved; run the same command with --resume to go on"
            if rank() == 0:
                print(line, file=sys.stderr)
            raise RunStopped(line)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first, self._told = not self._told, True
        if is_first and self._waiting:
            raise _ToldToStop

    def wait_for(self, get: Callable[[], ResultT]) -> ResultT | None:
        """Return what a function that waits returns, or None as soon as the signal comes.

        Args:
            get: may be left at any point; what it works on is not to be used again but to be closed.
        """
        try:
            try:
                self._waiting = True
                return None if self._told else get()
            finally:
                self._waiting = False
        except _ToldToStop:  # also from the block before, should the signal come there
            return None

    def agree(self) -> bool:
        """Return whether to stop now; every rank calls it before every step and gets the same answer.

        Raises:
            LoaderError: a rank is gone; the loader of that rank is what most often ended it.
        """
        if self._group is None:
            return self._told
        flag = torch.tensor(int(self._told))
        try:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise LoaderError(
                f"ranks: expected all {world_size()} to begin a step, found one gone ({error}); its own last "
                "line says why"
            ) from None
        return bool(flag)
