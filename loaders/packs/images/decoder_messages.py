"""Collect what decoders say about the image that they decode, instead of printing it."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_MAX_MESSAGES = 8
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class _Listener:
    """Collects the warnings of threads that decode; those of other threads go where they went before.

    `warnings.catch_warnings` affects the whole process, so threads that decode at the same time share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here = threading.local()
        self._num_threads = 0
        self._caught = warnings.catch_warnings()

    def enter(self) -> list[str]:
        """Start listening for this thread; return the list to which its messages are appended."""
        with self._lock:
            if self._num_threads == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                # Override settings that turn warnings into errors: a pack must not depend on the environment.
                warnings.filterwarnings("always", module=r"PIL(\.|$)|pillow_")
                before = warnings.showwarning

                def show(message: Warning | str, *rest: object, **named: object) -> None:
                    found = getattr(self._here, "messages", None)
                    if found is None:
                        before(message, *rest, **named)  # type: ignore[arg-type]
                    else:
                        found.append(str(message))

                warnings.showwarning = show
            self._num_threads += 1
        self._here.messages = []
        messages: list[str] = self._here.messages
        return messages

    def leave(self) -> None:
        """Stop listening for this thread."""
        self._here.messages = None
        with self._lock:
            self._num_threads -= 1
            if self._num_threads == 0:
                self._caught.__exit__(None, None, None)


_listener = _Listener()
_stderr_lock = threading.Lock()


@contextmanager
def decoder_messages() -> Iterator[list[str]]:
    """Yield a list that collects this thread's warnings; at the end it keeps the first few different ones."""
    messages = _listener.enter()
    try:
        yield messages
    finally:
        _listener.leave()
        kept = dict.fromkeys(_ADDRESS.sub("0x...", " ".join(text.split())) for text in messages)
        messages[:] = list(kept)[:_MAX_MESSAGES]


@contextmanager
def stderr_lines(messages: list[str]) -> Iterator[None]:
    """Append to `messages` the first 64 KiB written to standard error in the block; one thread at a time."""
    with _stderr_lock:
        try:
            before = os.dup(_STDERR)
        except OSError:  # there is no such stream, so nothing can be written to it
            yield
            return
        try:
            with tempfile.TemporaryFile() as file:
                os.dup2(file.fileno(), _STDERR)
                try:
                    yield
                finally:
                    os.dup2(before, _STDERR)
                    file.seek(0)
                    text = file.read(1 << 16).decode("utf-8", "replace")
                    messages.extend(line for line in text.splitlines() if line.strip())
        finally:
            os.close(before)
