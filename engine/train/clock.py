"""The clock of a run: images per second, and the share of time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TrainingClock:
    """Counts images, time, and time spent waiting for data, per log window and over the process."""

    def __init__(self) -> None:
        self.images, self.waited_s = 0, 0.0
        self.start = self.window_start = time.perf_counter()
        self.windows: list[tuple[int, float, float]] = []  # images, seconds waited, seconds

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, and count the time until each arrives as waiting."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do not count the time of the block, which runs inside a request for a batch, as waiting."""
        start = time.perf_counter()
        yield
        self.waited_s -= time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block in the log window."""
        start = time.perf_counter()
        yield
        self.window_start += time.perf_counter() - start

    def close_window(self) -> tuple[float, float]:
        """Return images/s and the wait share since the last call; the device must have finished its work."""
        now = time.perf_counter()
        elapsed_s = max(now - self.window_start, 1e-9)
        rates = (self.images / elapsed_s, self.waited_s / elapsed_s)
        self.windows.append((self.images, self.waited_s, elapsed_s))
        self.images, self.waited_s, self.window_start = 0, 0.0, now
        return rates

    def overall(self) -> tuple[float, float]:
        """Return images/s and the wait share without the first window (start-up), if there are others."""
        windows = self.windows[1:] or self.windows
        images, waited_s, elapsed_s = (
            (sum(column) for column in zip(*windows, strict=True)) if windows else (0, 0, 1)
        )
        return images / elapsed_s, waited_s / elapsed_s
