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
"""Exit code of a run that SIGTERM stopped and that saved its state: EX_TEMPFAIL, "try again later"."""

_SIGNALS = {int(signal.SIGTERM): "SIGTERM", int(signal.SIGINT): "interrupted"}


class RunStopped(SystemExit):
    """Ends the process with `EXIT_STOPPED` after a checkpoint was written; `message` says so."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_STOPPED)
        self.message = message


class _ToldToStop(BaseException):
    """Ends the wait for a batch; only `StopSignal.wait_for` catches it."""


class StopSignal:
    """Lets all ranks stop before the same step if any of them receives a signal.

    A checkpoint needs all ranks at the same step, and a rank cannot leave a step that it has begun, since the
    others wait for it in collectives. So no rank begins a step before all ranks have met in `agree`. A rank
    calls `agree` when it has its batch, or at once if the signal comes while it waits for a batch. `agree`
    reduces one number over gloo, in a separate group, without involving a device.

    Further signals change nothing: a rank gets two if a scheduler signals every process and a launcher also
    forwards the signal that it received. Only in a run of one process does a second Ctrl-C end the process at
    once, without a new checkpoint. A signal after the last step takes effect at the end of the block. If the
    process ignores Ctrl-C, as background jobs of some shells do, so does this class.

    Raises:
        RunStopped: at the end of the block, if SIGTERM came after the last step.
        KeyboardInterrupt: at the end of the block, if Ctrl-C came after the last step.
    """

    def __enter__(self) -> StopSignal:
        self._told = 0  # the signal that came; 0 for none
        self._waiting = False
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._previous: dict[int, Any] = {}
        # Python allows handlers only in the main thread; in another thread the caller must stop the run
        # itself.
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not set by Python and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._group is not None:  # else the sockets and threads of past trainings would pile up
            dist.destroy_process_group(self._group)
        if self._told and kind is None:
            raise self.end("this training is finished and saved")

    def end(self, what: str) -> BaseException:
        """Return the exception to raise for the signal; rank 0 tells the user of the signal and of `what`."""
        line = f"{_SIGNALS[self._told]}: {what}; run the same command with --resume to continue"
        if self._told == signal.SIGINT:  # `run_command` prints the exception's argument
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
        """Return the result of a function that waits, or None as soon as a signal comes.

        Args:
            get: function that a signal may interrupt at any point; the caller must then close the object on
                which the function works, and not use the object again.
        """
        try:
            try:
                self._waiting = True
                return None if self._told else get()
            finally:
                self._waiting = False
        except _ToldToStop:  # the handler may raise it in `finally` too
            return None

    def agree(self) -> bool:
        """Return whether to stop now; every rank calls this before every step and gets the same answer.

        Raises:
            LoaderError: another rank is gone, most often because its loader failed.
        """
        if self._group is None:
            return self._told > 0
        flag = torch.tensor(self._told)
        try:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise LoaderError(
                f"ranks: expected all {world_size()} to begin a step, found that one had ended ({error}); "
                "its own last line says why"
            ) from None
        agreed = int(flag)
        if agreed:  # else keep `_told`: a signal may have come meanwhile
            self._told = agreed
        return agreed > 0
