"""Threads that may hang without hanging the process: waits for them, and closing, have a time limit."""

from __future__ import annotations

import queue
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from loaders.common.errors import LoaderError

ArgumentTs = TypeVarTuple("ArgumentTs")
R = TypeVar("R")

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


MAY_HANG = "the storage or a worker hangs"
"""Clause for the error when a backend's own threads take too long."""


def result_until(
    future: Future[R], deadline: float, limit_s: float, what: str, may_hang: str | Callable[[], str]
) -> R:
    """Wait for the result of a thread, until a deadline.

    Args:
        deadline: time of `time.monotonic` at which waiting ends.
        limit_s: the time limit from which the deadline follows, for the message.
        what: name of the thread's work, for the message.
        may_hang: a clause that says what may hang, or a function that returns it when time is up.

    Raises:
        LoaderError: there is no result at the deadline. An error of the work itself is raised unchanged.
    """
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        if future.done() and future.exception() is error:
            raise
        why = may_hang if isinstance(may_hang, str) else may_hang()
        raise LoaderError(
            f"{what} took longer than {limit_s:g} s: {why}; raise timeout_s if it is only slow"
        ) from None


class WorkerPool:
    """A pool of threads, started when first needed, that can be left behind when they hang.

    `concurrent.futures.ThreadPoolExecutor` waits for its threads without limit, in `shutdown` and again when
    the process exits. With it, a read from a dead network disk would turn the loader's error into a hang.

    Args:
        name: name of the threads, before their number.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, _release, self._tasks, self._threads)  # in case nobody closes the loader

    def submit(self, function: Callable[[*ArgumentTs], R], *arguments: *ArgumentTs) -> Future[R]:
        """Run `function(*arguments)` in a thread.

        Raises:
            RuntimeError: the pool is closed.
        """
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("this loader is closed; build another")
            self._tasks.put((future, function, arguments))
            if len(self._threads) < self._num_threads:
                name = f"{self._name}_{len(self._threads)}"
                # A daemon thread, so that the interpreter does not wait for it at exit.
                thread = threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self, timeout_s: float) -> None:
        """Cancel tasks that have not begun, wait for the others, and warn of threads that hang."""
        with self._lock:
            self._closed = True
            with suppress(queue.Empty):
                while True:
                    if (task := self._tasks.get_nowait()) is not None:
                        task[0].cancel()
            _release(self._tasks, self._threads)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        if hanging:
            warnings.warn(
                f"{hanging} of {len(self._threads)} threads {self._name} still hang after {timeout_s:g} s, "
                "and are left behind: the storage does not answer",
                RuntimeWarning,
                stacklevel=2,
            )


def _release(tasks: queue.SimpleQueue[_Task | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)


def _work(tasks: queue.SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if future.set_running_or_notify_cancel():
            _run(future, function, arguments)
        del task, future, function, arguments  # so that an idle thread keeps no batch alive


def _run(future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = function(*arguments)
    except BaseException as error:
        future.set_exception(error)
        del future  # without this the traceback of the error would keep the task alive
    else:
        future.set_result(result)
