"""Run commands and ranks in separate processes that start quickly: as forks of one that has imported torch.

Starting Python with torch, timm and accelerate takes seconds of a core, once per rank under a launcher.
`multiprocessing`'s fork server imports `tests.preloaded` once for each worker of the tests. What only a real
start shows (imports, behaviour at exit, launchers) is tested by running Python or `accelerate launch`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, chdir, suppress
from functools import cache
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def _become(words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Do what `python WORDS` does, in this forked process."""
    for descriptor, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    assert "tests.preloaded" in sys.modules, "the fork server has imported nothing"
    os.setsid()  # so that processes which it forks can be ended with it
    os.environ.clear()
    os.environ.update(environment)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


class Forked:
    """A running `python WORDS`, started in the project's root; leaving the context kills it if still running.

    Args:
        words: `script.py`, `-m module` or `-c text`, and the arguments.
        environment: variables to add to those of this process.
    """

    def __init__(self, *words: object, environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        self.words = [str(word) for word in words]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        given = (self.words, variables, str(self._out), str(self._err))
        self._process = _CONTEXT.Process(target=_become, args=given)
        with chdir(ROOT):  # the fork server imports from here, and the command starts here
            self._process.start()

    @property
    def pid(self) -> int:
        """Process ID."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_for_lines(self, number: int, seconds: float = 120.0) -> None:
        """Wait until the process has printed `number` lines."""
        end = time.monotonic() + seconds
        while not self._out.exists() or self._out.read_bytes().count(b"\n") < number:
            assert self._process.is_alive(), self._err.read_text()
            assert time.monotonic() < end, f"{self.words}: no {number} lines in {seconds} s"
            time.sleep(0.002)

    def ended(self) -> subprocess.CompletedProcess[str] | None:
        """Return exit code (negative for a signal) and output; None while the process is running."""
        if self._process.is_alive():
            return None
        texts = [path.read_text() if path.exists() else "" for path in (self._out, self._err)]
        return subprocess.CompletedProcess(self.words, self._process.exitcode or 0, *texts)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end without a time limit but the test's; see `ended`."""
        self._process.join()
        done = self.ended()
        assert done is not None
        return done

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()  # in case it has no process group of its own yet
        self._process.join()
        self._folder.cleanup()


def run_forked(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` from the project's root to its end; see `Forked`."""
    with Forked(*words) as process:
        return process.wait()


@cache
def start_fork_server() -> None:
    """Start the fork server of this process, and wait until it has imported all modules."""
    run_forked("-c", "")


def launch_forked(num_processes: int, *words: object) -> None:
    """Run `python WORDS` as `accelerate launch --num_processes N` does on a CPU; every rank must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(num_processes), "ACCELERATE_USE_CPU": "true"}
    with ExitStack() as opened:
        ranks = [
            opened.enter_context(
                Forked(*words, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            )
            for rank in range(num_processes)
        ]
        while None in (found := [rank.ended() for rank in ranks]):  # the first failure ends all
            assert not any(done.returncode for done in found if done), [done.stderr for done in found if done]
            time.sleep(0.01)
        assert not any(done.returncode for done in found if done), [done.stderr for done in found if done]
