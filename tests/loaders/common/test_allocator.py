"""Freed memory stays with the process when one of the project's commands runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, numpy, psutil
from loaders.common.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
before = psutil.Process().memory_info().rss
block = numpy.ones(2**24, numpy.uint8)
del block
print((psutil.Process().memory_info().rss - before) / 2**24)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
@pytest.mark.parametrize(
    ("words", "variables", "kept"),
    [
        ("keep", {}, True),
        ("leave", {}, False),
        ("keep", {"MALLOC_ARENA_MAX": "4"}, False),
        ("keep", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, False),
    ],
)
def test_memory_that_is_freed_stays_unless_the_user_chose(
    words: str, variables: dict[str, str], kept: bool
) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words],
        env=given | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (float(done.stdout) > 0.9) == kept
    assert float(done.stdout) > 0.9 or float(done.stdout) < 0.1
