"""Run the project's commands in this process, since each start of Python with torch takes seconds."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

from engine.report import run_page
from loaders.common.errors import run_command

ROOT = Path(__file__).parents[1]


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in the project's root, as its command line would, but write no page about a training.

    The page's pictures take longer than a training of a few steps. `tests/engine/report/test_run_page.py`,
    `tests/test_tour.py` and, if there is a browser, `tests/recipes/test_pages.py` make pages.

    Args:
        script: path such as "tools/verify_pack.py"; its function `main` is called.
        arguments: arguments of the command line.

    Returns:
        Exit code and output. An error that a user would see as a traceback is raised.
    """
    words = [script, *map(str, arguments)]
    module = import_module(script.removesuffix(".py").replace("/", "."))
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    code = 0
    with pytest.MonkeyPatch.context() as patch, chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        patch.setenv("COLUMNS", "200")
        patch.setattr(run_page, "build_run_page", lambda options: "")
        try:
            run_command(module.main)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(words, code, *texts)
