"""A small HTTP server over a folder that fails in the ways that stores do, and counts its requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal["error", "stall", "crawl", "cut", "short", "reset", "flip", "denied"]


class FaultyStore:
    """The server's state; `fault_for(path, n)` returns the fault for the n-th request (from 0) of a path."""

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder = folder
        self.ranges = ranges
        self.fault_for: Callable[[str, int], Fault | None] = lambda path, n: None
        self.requests: Counter[str] = Counter()
        self.bytes_sent = 0
        self.url = ""
        self._released = threading.Event()
        self._lock = threading.Lock()

    def count(self, path: str) -> int:
        with self._lock:
            self.requests[path] += 1
            return self.requests[path] - 1

    def release(self) -> None:
        self._released.set()

    def pause(self, seconds: float) -> None:
        self._released.wait(seconds)


def _handler(store: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = store.folder / self.path.lstrip("/")
            fault = store.fault_for(self.path, store.count(self.path)) if body else None
            if fault in ("error", "denied"):
                return self.send_error(503 if fault == "error" else 403)
            if not path.is_file():
                return self.send_error(404)
            data, status = path.read_bytes(), 200
            if store.ranges and (wanted := self.headers.get("Range")):
                first, last = wanted.removeprefix("bytes=").split("-")
                data, status = data[int(first) : int(last) + 1], 206
            if fault == "flip":
                data = bytes([data[0] ^ 1]) + data[1:]
            if fault == "short":  # the answer claims to be complete but is too short
                data = data[: len(data) // 2]
            if fault == "reset":
                self.close_connection = True
                return self.connection.close()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self._send(data, fault)
            return None

        def _send(self, data: bytes, fault: Fault | None) -> None:
            try:
                if fault == "stall":
                    store.pause(30)
                elif fault == "crawl":
                    for byte in data[:200]:
                        self.wfile.write(bytes([byte]))
                        store.pause(0.05)
                elif fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return
                else:
                    self.wfile.write(data)
                    store.bytes_sent += len(data)
                self.close_connection = fault is not None
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


@contextmanager
def serve(folder: Path, ranges: bool = True) -> Iterator[FaultyStore]:
    """Serve a folder on a free port of the loopback interface."""
    store = FaultyStore(folder, ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.release()
        server.shutdown()
        server.server_close()
        thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
