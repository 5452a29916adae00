"""A fake device whose streams do their work only when a test tells them to."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class FakeEvent:
    """An event that its stream passes; the host must not wait for it."""

    def __init__(self):
        self.passed = False

    def query(self):
        return self.passed

    def synchronize(self):
        raise AssertionError("the consumer's thread waited for the device")


class FakeStream:
    """A queue of work that is done in order; a wait in it blocks the queue until its event has passed."""

    def __init__(self, name):
        self.name = name
        self.queue = []

    def record_event(self):
        event = FakeEvent()
        self.queue.append(("mark", lambda: setattr(event, "passed", True) or True))
        return event

    def wait_event(self, event):
        self.queue.append(("wait", event.query))

    def run(self, most=None):
        """Do up to `most` pieces of work, all by default, until a wait blocks the stream."""
        done = 0
        while self.queue and (most is None or done < most) and self.queue[0][1]() is not False:
            self.queue.pop(0)
            done += 1


class FakeStreams:
    """A stand-in on the host for `loaders.placing.CudaStreams`; `log` lists the queued work in order.

    With `eager`, copies are done at once, as interpreted kernels need; events still pass only in `run`.
    """

    def __init__(self, eager=False):
        self.eager = eager
        self.consumer = FakeStream("consumer")
        self.streams = []
        self.log = []
        self.recorded = []
        self._in_use = [self.consumer]

    def stream(self):
        self.streams.append(FakeStream(f"stream {len(self.streams)}"))
        return self.streams[-1]

    def current(self):
        return self._in_use[-1]

    @contextmanager
    def use(self, stream):
        self._in_use.append(stream)
        try:
            yield
        finally:
            self._in_use.pop()

    def pinned(self, size_bytes):
        self.log.append("pin")
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def copy(self, tensor):
        target = torch.full_like(tensor, 77)
        tensor = (
            tensor.detach()
        )  # a new Python object of the same memory, since a device keeps no object alive
        self.log.append(f"copy on {self.current().name}")
        if self.eager:
            target.copy_(tensor)
        self.current().queue.append(("copy", lambda: target.copy_(tensor) is not None))
        return target

    def record(self, tensor, stream):
        self.recorded.append((tensor.data_ptr(), stream.name))
