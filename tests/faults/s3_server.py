"""Run moto's S3 server in a separate process, because moto patches libraries that the client uses too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

KEYS = {"key": "testing", "secret": "testing"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the endpoint of an empty S3 store on a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"}, **quiet) as server:
        endpoint = f"http://127.0.0.1:{port}"
        try:
            _wait(endpoint)
            yield endpoint
        finally:
            server.terminate()


def _wait(endpoint: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
