"""A device whose streams do their work only when a test tells them to."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class FakeEvent:
    """A mark that its stream passes; nobody may wait for it on the host."""

    def __init__(self):
        self.passed = False

    def query(self):
        return self.passed

    def synchronize(self):
        raise AssertionError("the consumer's thread waited for the device")


class FakeStream:
    """Work in its order; a wait holds it up until the event has passed."""

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
        """Do up to `most` pieces of work, all by default, as far as nothing holds the stream up."""
        done = 0
        while self.queue and (most is None or done < most) and self.queue[0][1]() is not False:
            self.queue.pop(0)
            done += 1


class FakeStreams:
    """A stand-in on the host for `loaders.placing.CudaStreams`; `log` has what was queued, in order.

    An eager device copies at once, as kernels of an interpreter need it; its events still wait to be passed.
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
        )  # a device keeps no object of Python alive, so another one of the same memory
        self.log.append(f"copy on {self.current().name}")
        if self.eager:
            target.copy_(tensor)
        self.current().queue.append(("copy", lambda: target.copy_(tensor) is not None))
        return target

    def record(self, tensor, stream):
        self.recorded.append((tensor.data_ptr(), stream.name))
