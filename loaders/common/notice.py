"""Prints notices during a run. They are not Python warnings, which a user may turn into errors."""

from __future__ import annotations

import functools
import os
import sys

from loaders.common.errors import one_line
from loaders.common.next_step import as_called


@functools.cache
def tell(line: str) -> None:
    """Print a line to stderr, in the first of a launcher's processes only; each line is printed once."""
    if os.environ.get("RANK", "0") == "0":
        print(one_line(as_called(line)), file=sys.stderr)
