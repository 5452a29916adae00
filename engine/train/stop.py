"""SIGTERM and Ctrl-C turned into a stop at one step that all ranks agree on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from engine.train.distributed import rank, world_size
from loaders.common.errors import LoaderError

ResultT = TypeVar("ResultT")

EXIT_STOPPED = 75
"""Exit code of a run that was told to stop and saved itself: EX_TEMPFAIL, "try again later"."""

_SIGNALS = {int(signal.SIGTERM): "SIGTERM", int(signal.SIGINT): "interrupted"}


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
    told, a rank gets two. Only a second Ctrl-C, where there is one process, ends it at once, with what was
    saved before. A signal that comes when no step is left ends the process as the block is left, instead of
    being lost on whatever the command does next. A shell that has its background jobs ignore Ctrl-C is
    obeyed.

    Raises:
        RunStopped: on leaving the block, when SIGTERM came and nobody stopped for it.
        KeyboardInterrupt: likewise, after Ctrl-C.
    """

    def __enter__(self) -> StopSignal:
        self._told = 0  # the signal that came
        self._waiting = False
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._previous: dict[int, Any] = {}
        # Python allows handlers only in the main thread; elsewhere the caller has to stop the run itself.
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: one that the interpreter did not set and cannot give back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._group is not None:  # else each training of a command would keep its sockets and threads
            dist.destroy_process_group(self._group)
        if self._told and kind is None:
            raise self.end("this training is finished and saved")

    def end(self, what: str) -> BaseException:
        """Return what to raise for the signal that came; rank 0 says that and what was saved, in one line.

        Args:
            what: was saved.
        """
        line = f"{_SIGNALS[self._told]}: {what}; run the same command with --resume to go on"
        if self._told == signal.SIGINT:  # `run_command` prints what it holds
            return KeyboardInterrupt(line if rank() == 0 else "")
        if rank() == 0:
            print(line, file=sys.stderr)
        return RunStopped(line)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == self._told == signal.SIGINT and self._group is None:
            raise KeyboardInterrupt
        is_first, self._told = not self._told, self._told or number
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
            return self._told > 0
        flag = torch.tensor(self._told)
        try:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise LoaderError(
                f"ranks: expected all {world_size()} to begin a step, found one gone ({error}); its own last "
                "line says why"
            ) from None
        agreed = int(flag)
        if agreed:  # else a signal that came meanwhile would be forgotten
            self._told = agreed
        return agreed > 0
