"""Notices while a run goes on. They are no Python warnings, which a user may have turned into errors."""

from __future__ import annotations

import functools
import os
import sys

from loaders.common.errors import one_line


@functools.cache
def tell(line: str) -> None:
    """Print a line to stderr, once, in the first of the processes that a launcher started.

    Args:
        line: what was found, and what happens with it.
    """
    if os.environ.get("RANK", "0") == "0":
        print(one_line(line), file=sys.stderr)
