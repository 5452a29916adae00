"""CPU time of commands: measuring it, predicting it, and finding the number of steps within a budget."""

from __future__ import annotations

import importlib
import math
import os
import resource
import runpy
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "accelerate",
    "faiss",
    "matplotlib.backends.backend_agg",
    "sklearn.linear_model",
    "tensorboard",
    "torch.utils.tensorboard",
    "engine.labels.acquisition",
    "engine.train.classifier_recipe",
    "engine.labels.clusters",
    "engine.evaluate.few_labels",
    "engine.train.phases",
    "engine.train.run_config",
    "engine.labels.select",
    "loaders.classification",
    "loaders.views.presets",
)
"""Modules that the scripts import; they are loaded once, before the forks."""


class CommandFailed(Exception):
    """A command ended with an error or had no budget left, or a calibration has no usable result.

    Attributes:
        seconds: CPU seconds that the command used.
        code: exit code, or minus the number of the signal that ended the command.
    """

    def __init__(self, message: str, seconds: float = 0.0, code: int = 1) -> None:
        super().__init__(message)
        self.seconds, self.code = seconds, code


class CommandStopped(KeyboardInterrupt):
    """A command stopped after Ctrl-C or SIGTERM and can be resumed.

    Attributes:
        seconds: CPU seconds that the command used.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


_STOPPED = (75, 130, -signal.SIGINT, -signal.SIGTERM)


def preload(num_threads: int) -> None:
    """Import the scripts' modules and set the threads of all libraries; forks of this process inherit both.

    Do not compute in this process afterwards: that would start threads, which a fork does not inherit.
    """
    torch.set_num_threads(num_threads)
    for name in PRELOADED:
        importlib.import_module(name)
    threadpool_limits(num_threads)


def cpu_seconds(script: str, arguments: Sequence[str], log: Path, limit_s: float | None = None) -> float:
    """Run one of the project's scripts and return the CPU seconds that it took, user and system.

    The script runs in a fork of this process, which has already imported the libraries, since importing them
    would take most of the time of a short run. Time in which the process is stopped or waits for a core does
    not count.

    Args:
        script: path below the project's root, such as `recipes/barlow.py`.
        log: file to which the script's output and errors are appended.
        limit_s: CPU seconds, rounded up, after which the system ends the script; None for no limit.

    Raises:
        CommandStopped: the script stopped after Ctrl-C or SIGTERM; a SIGTERM to this process is passed on.
        CommandFailed: the script ended with an exit code other than 0, or was ended by another signal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(script, arguments, log, limit_s)
    with _passed_on(child):
        _, status, used = os.wait4(child, 0)
    code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    if code in _STOPPED:
        raise CommandStopped(seconds)
    if code:
        raise CommandFailed(f"{script} ended with code {code}, see {log}", seconds, code)
    return seconds


@contextmanager
def _passed_on(child: int) -> Iterator[None]:
    """Inside the block, leave Ctrl-C to the child and pass SIGTERM on, so that it stops with a checkpoint."""
    kept = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM)),
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _become(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> NoReturn:
    """Run the script in this forked process, with its output in the log, and exit."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        print(f"$ python {script} {shlex.join(arguments)}", flush=True)
        if limit_s is not None:
            whole = math.ceil(limit_s)
            resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 5))
        sys.argv = [script, *arguments]
        runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the parent's exit handlers must not run in the fork


@dataclass(frozen=True)
class Cost:
    """CPU time of a method as a function of its steps.

    Attributes:
        base: seconds of a run without steps: start-up, and work before the first epoch.
        per_step: seconds of a step.
        per_epoch: seconds of the work before each later epoch.
        steps_per_epoch: steps in an epoch, to count the epochs for `per_epoch`.
    """

    base: float
    per_step: float
    per_epoch: float = 0.0
    steps_per_epoch: int = 1

    def of(self, steps: int) -> float:
        """Return the predicted seconds of a run of this many steps."""
        epochs_after_first = max(0, math.ceil(steps / self.steps_per_epoch) - 1)
        return self.base + self.per_step * steps + self.per_epoch * epochs_after_first

    def steps_within(self, seconds: float) -> int:
        """Return the largest number of steps whose predicted time is within `seconds`, at least 1."""
        most = max(1, int((seconds - self.base) / self.per_step))
        low, high = 1, most  # `most` ignores the work per epoch: bisect, since `of` never decreases
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of(middle) <= seconds else (low, middle - 1)
        return low


def calibrate(
    run: Callable[[int], float],
    lengths: tuple[int, int],
    start_up: float,
    steps_per_epoch: int,
    epochwise: bool,
) -> Cost:
    """Measure a method by two short runs, whose difference is the time of the additional steps.

    Args:
        run: runs the method for a number of steps and returns the CPU seconds.
        lengths: steps of the two runs, the second one longer; both should fit in one epoch.
        start_up: seconds that any run takes without training.
        steps_per_epoch: see `Cost`.
        epochwise: whether the time of a run beyond start-up and steps is needed again before every epoch.

    Raises:
        CommandFailed: the longer run took no more time than the shorter one.
    """
    short, long = (run(steps) for steps in lengths)
    per_step = (long - short) / (lengths[1] - lengths[0])
    if per_step <= 0:
        raise CommandFailed(
            f"calibration: {lengths[1]} steps took {long:.1f} s, {lengths[0]} took {short:.1f} s"
        )
    base = short - lengths[0] * per_step
    per_epoch = max(0.0, base - start_up) if epochwise else 0.0
    return Cost(base, per_step, per_epoch, steps_per_epoch)
