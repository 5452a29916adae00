"""What a person sees while a run trains: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Shows steps, loss, images/s, the share of time spent waiting for data, and the time left."""

    def __init__(self, name: str, total_steps: int, done_steps: int, visible: bool) -> None:
        """Prepare the display.

        Args:
            name: of the run.
            total_steps: steps of the whole run.
            done_steps: steps done before this process started.
            visible: False on every rank but 0.
        """
        self._console = Console(stderr=True, quiet=not visible)
        self._name, self._total, self._done = name, total_steps, done_steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not (visible and self._console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=total_steps, completed=done_steps, status="")
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, epoch: int, loss: float, img_per_s: float, wait_share: float) -> None:
        """Show the figures of a log step."""
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
