"""Limits of what is packed."""

from __future__ import annotations

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded, unless told otherwise: decompression bombs."""
