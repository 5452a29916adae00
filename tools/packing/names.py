"""Constants of the packing tools' options, in a module that does not import numba."""

from __future__ import annotations

MAX_SIDE = 256
"""Largest side of a drawn picture in pixels."""
PAGE_NAME = "report.html"
"""Name of the page in a pack's folder."""
