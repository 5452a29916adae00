"""Constants for the options of the packing tools, apart from modules that need numba."""

from __future__ import annotations

MAX_SIDE = 256
"""Largest side of a drawn picture in pixels."""
PAGE_NAME = "report.html"
"""Name of the page in a pack's folder."""
