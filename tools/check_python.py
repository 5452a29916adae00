"""Refuse a Python on which Sluice cannot be installed; any version of Python can run this file."""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)  # keep equal to `requires-python` in pyproject.toml

if not OLDEST <= sys.version_info[:2] <= NEWEST:
    found = sys.version.split()[0]
    told = (
        "setup: expected Python 3.11 to 3.13, found " + found + "; name one: make setup PYTHON=python3.11\n"
    )
    sys.stderr.write(told)
    sys.exit(2)
