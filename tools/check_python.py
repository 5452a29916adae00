"""Refuses a Python that Sluice cannot be installed on, before anything is; any Python can run this file."""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)  # as `requires-python` in pyproject.toml says

if not OLDEST <= sys.version_info[:2] <= NEWEST:
    sys.stderr.write(
        "setup: expected Python 3.11 to 3.13, found {}; name one of these: make setup PYTHON=python3.11\n".format(
            sys.version.split()[0]
        )
    )
    sys.exit(2)
