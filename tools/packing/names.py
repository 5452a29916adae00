"""What the options of the packing tools name, apart from what needs numba."""

from __future__ import annotations

MAX_SIDE = 256
"""Largest side of a drawn picture in pixels."""
PAGE_NAME = "report.html"
"""Of the page in a pack's folder."""
