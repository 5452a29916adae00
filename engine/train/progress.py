"""The display of progress: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0
_ESTIMATE_AFTER_S = 5.0  # from the end of the first step, which is left out, since it includes compilation
_LONG_STEP_S = 5.0  # a first step longer than this is reported at once, since the next may take long too


def duration(seconds: float) -> str:
    """Return a duration at the precision of an estimate: "40 s", "12 min", "3 h 20 min", "2.5 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86400:.1f} days"


class RowsProgress:
    """Prints a line after each of several trainings, with the time that the remaining ones will take."""

    def __init__(self, total: int, visible: bool) -> None:
        """Start the clock.

        Args:
            total: number of trainings.
            visible: whether lines are printed; callers pass False on every rank but 0.
        """
        self._console = Console(stderr=True, quiet=not visible)
        self._total, self._done, self._start = total, 0, time.monotonic()

    def add(self, line: str) -> None:
        """Print the result of the training that has just ended."""
        self._done += 1
        left = self._total - self._done
        each = (time.monotonic() - self._start) / self._done
        about = f"; about {duration(each * left)} for the other {left}" if left and each * left > 5 else ""
        self._console.print(f"[{self._done}/{self._total}] {line}{about}", highlight=False, soft_wrap=True)


class _WithBar:
    """A context manager that shows a bar on the terminal."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _bar(console: Console, visible: bool, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=transient,
        disable=not (visible and console.is_terminal),
    )


class CountProgress(_WithBar):
    """Shows how many images are done, and how fast: a bar on a terminal, else a line every few seconds."""

    def __init__(self, name: str, total: int, done: int, visible: bool) -> None:
        """Start the clock.

        Args:
            name: name of the work, such as "features".
            total: number of images; 0 if not known yet: then the first call of `show` starts the clock.
            done: number of images that were done before.
            visible: whether anything is shown; callers pass False on every rank but 0.
        """
        self._console = Console(stderr=True, quiet=not visible)
        self._name, self._before, self._begun = name, done, total > 0
        self._bar = _bar(self._console, visible, transient=True)
        self._task = self._bar.add_task(name, total=total, completed=done, status="")
        self._start = self._last_line = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` images are done."""
        now = time.monotonic()
        if not self._begun:
            self._begun, self._before, self._start = True, done, now
            self._bar.reset(self._task)
        rate = (done - self._before) / max(now - self._start, 1e-9)
        self._bar.update(self._task, completed=done, total=total, status=f"{rate:,.0f} images/s")
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S and done < total:
            self._last_line = now
            left = f", about {duration((total - done) / rate)} left" if rate else ""
            line = f"{self._name}: {done:,} of {total:,} images, {rate:,.0f} images/s{left}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class TrainingProgress(_WithBar):
    """Shows steps, loss, images/s, the share of time spent waiting for data, and the time left."""

    def __init__(self, name: str, total_steps: int, done_steps: int, visible: bool) -> None:
        """Prepare the display.

        Args:
            name: name of the run.
            total_steps: steps of the whole run.
            done_steps: steps done before this process started.
            visible: False for no display, as on every rank but 0.
        """
        self._console = Console(stderr=True, quiet=not visible)
        self._name, self._total, self._done = name, total_steps, done_steps
        self._bar = _bar(self._console, visible)
        self._task = self._bar.add_task(name, total=total_steps, completed=done_steps, status="")
        self._start = self._last_line = time.monotonic()
        self._first_step: float | None = None
        self._estimated = False

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._bar.update(self._task, completed=step)
        if not self._estimated:
            self._estimate(step, time.monotonic())

    def _estimate(self, step: int, now: float) -> None:
        """Print how long the rest will take: a bound after a long first step, later an estimate."""
        left = self._total - step
        if self._first_step is None:
            self._first_step = now
            if now - self._start > _LONG_STEP_S and left:
                took = now - self._start
                self.say(
                    f"{self._name}: the first step took {duration(took)}, including loading "
                    f"and compilation; at most {duration(took * left)} for the {left:,} remaining"
                )
            return
        steps = step - self._done - 1
        if now - self._first_step < _ESTIMATE_AFTER_S or steps < 1:
            return
        self._estimated = True
        if left:
            each = (now - self._first_step) / steps
            about = f"about {duration(each * left)} for the {left:,} remaining steps"
            self.say(f"{self._name}: {about}, {each:.2g} s a step")

    def report(self, step: int, epoch: int, loss: float, img_per_s: float, wait_share: float) -> None:
        """Show the values of a log step."""
        status = (
            f"epoch {epoch}  loss {loss:.4g}  {img_per_s:,.0f} images/s  {wait_share:.0%} waiting for data"
        )
        self._bar.update(self._task, completed=step, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line >= LINE_EVERY_S or step == self._total):
            self._last_line = now
            left_s = (now - self._start) / max(1, step - self._done) * (self._total - step)
            self.say(f"{self._name} step {step}/{self._total}  {status}  {left_s:,.0f} s left")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
