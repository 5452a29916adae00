"""Run scripts, each with a command line, in one process that refuses to import slow libraries."""

from __future__ import annotations

import importlib.abc
import io
import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

HEAVY = {
    "PIL",
    "accelerate",
    "faiss",
    "fsspec",
    "matplotlib",
    "numba",
    "numpy",
    "pyarrow",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
}


class Refusal(importlib.abc.MetaPathFinder):
    """Import hook that ends the import of a heavy library with an error, optionally after a Ctrl-C."""

    def __init__(self, interrupts: bool, libraries: set[str]) -> None:
        self.interrupts, self.libraries = interrupts, libraries

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] in self.libraries:
            try:
                if self.interrupts:
                    signal.raise_signal(signal.SIGINT)
            finally:  # numpy's core hides an interrupt this way
                raise ImportError(f"{name} was imported")


def outcome(script: str, words: Sequence[str]) -> tuple[object, str, str]:
    """Run a script; return its exit code or the exception that ended it, and what it printed."""
    sys.argv = [script, *words]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code, out.getvalue(), err.getvalue()
    except BaseException as error:
        return repr(error), out.getvalue(), err.getvalue()
    return "no end", out.getvalue(), err.getvalue()


if __name__ == "__main__":
    if sys.argv[1] == "--interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT
        sys.meta_path.insert(0, Refusal(True, HEAVY | {"tyro"} if sys.argv[2] == "early" else HEAVY))
        print(outcome(sys.argv[3], sys.argv[4:]))
    else:
        sys.meta_path.insert(0, Refusal(False, HEAVY))
        commands = json.loads(sys.argv[1])
        found = [[*outcome(script, words), os.environ.get("OMP_WAIT_POLICY")] for script, words in commands]
        print(json.dumps(found))
